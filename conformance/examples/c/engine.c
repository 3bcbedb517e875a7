/* A whole engine in one file: a llama decoder in float32 that speaks lmconform's wire protocol.
 *
 *     cc -O2 -Wall -Wextra -std=c11 -o engine engine.c -lm
 *     lmconform check --command ./engine
 *
 * C11 and its library are all it needs. From top to bottom: memory and errors, JSON, the checkpoint, the decoder with
 * its KV cache, greedy decoding, the calls of the protocol, and the loop that answers them. Clear comes before fast:
 * tokens are fed one at a time, so that a prompt and a decode step are the same code.
 *
 * Two rules keep it short. What goes wrong calls `fail`, which jumps to the end of the request and becomes its error
 * reply. And memory that lives as long as the request comes from `take`, and is released with it, whatever happened. */

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    PROTOCOL = 1,               /* version of the wire protocol */
    MAX_LINE = 1 << 26,         /* longest line that is read */
    MAX_BYTES = 1 << 28,        /* most bytes that a line may announce after it */
    MAX_DEPTH = 100,            /* of lists and objects in JSON */
    MAX_SIZE = 1 << 24,         /* of a dimension in config.json */
    MAX_COMPLETIONS = 1000,     /* of one request */
    BLOCK = 16,                 /* tokens by which the memory of a session grows */
};

/* ---- Memory and errors */

#define REFUSED "refused"           /* this input is declined on purpose */
#define NOT_OFFERED "not-offered"   /* this engine lacks the ability */
#define VIOLATION "protocol"        /* the message is not one of the protocol */
#define RAISED "raised"             /* anything else */

static jmp_buf end_of_request;
static const char *failure;         /* kind of the error that ended the request */
static char failure_message[512];

/* End the request with an error reply. */
static _Noreturn void fail(const char *kind, const char *format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(failure_message, sizeof failure_message, format, values);
    va_end(values);
    failure = kind;
    longjmp(end_of_request, 1);
}

/* Blocks of memory that are released together. */
union block {
    union block *next;
    max_align_t aligned;
};

struct pool {
    union block *blocks;
};

static struct pool request_memory;

static void *take_from(struct pool *pool, size_t count, size_t size) {
    if (size != 0 && count > (SIZE_MAX / 2 - sizeof(union block)) / size) fail(RAISED, "out of memory");
    union block *block = calloc(1, sizeof *block + count * size);
    if (block == NULL) fail(RAISED, "out of memory: %zu times %zu bytes", count, size);
    block->next = pool->blocks;
    pool->blocks = block;
    return block + 1;
}

/* Zeroed memory that lives until the end of the request. */
static void *take(size_t count, size_t size) {
    return take_from(&request_memory, count, size);
}

static void release(struct pool *pool) {
    while (pool->blocks != NULL) {
        union block *block = pool->blocks;
        pool->blocks = block->next;
        free(block);
    }
}

/* Bytes that grow at the end. */
struct bytes {
    char *data;
    size_t used, room;
};

static struct bytes reply;      /* the line */
static struct bytes payload;    /* what follows it: the numbers of arrays */

/* Room for `count` more bytes and a zero; returns where they go. */
static char *reserve(struct bytes *bytes, size_t count) {
    if (count > SIZE_MAX / 4 - bytes->used) fail(RAISED, "out of memory");
    size_t needed = bytes->used + count + 1;
    if (needed > bytes->room) {
        size_t room = 2 * needed;
        char *data = realloc(bytes->data, room);
        if (data == NULL) fail(RAISED, "out of memory: %zu bytes", room);
        bytes->data = data;
        bytes->room = room;
    }
    return bytes->data + bytes->used;
}

/* Add to the line of the reply, as printf does. */
static void say(const char *format, ...) {
    va_list values;
    va_start(values, format);
    int length = vsnprintf(NULL, 0, format, values);
    va_end(values);
    if (length < 0) fail(RAISED, "a reply could not be written");
    char *place = reserve(&reply, (size_t)length);
    va_start(values, format);
    vsnprintf(place, (size_t)length + 1, format, values);
    va_end(values);
    reply.used += (size_t)length;
}

/* Add a JSON string. Messages are ASCII but for what they quote, and of that other bytes become question marks. */
static void say_text(const char *text) {
    say("\"");
    for (; *text != '\0'; text++) {
        if (*text == '"' || *text == '\\') say("\\%c", *text);
        else if (*text == '\n') say("\\n");
        else say("%c", *text >= ' ' && *text <= '~' ? *text : '?');
    }
    say("\"");
}

/* Add a number, for which JSON has no word where it is not finite. */
static void say_number(double value) {
    if (isfinite(value)) say("%.17g", value);
    else say("\"%s\"", isnan(value) ? "nan" : value > 0 ? "inf" : "-inf");
}

/* ---- JSON */

enum type { NOTHING, TRUTH, NUMBER, TEXT, LIST, TABLE };

struct json {
    enum type type;
    const char *key;            /* in a table */
    const char *text;           /* of TEXT, ended by a zero; of NUMBER: where it stands in the source */
    size_t length;              /* of the text; of LIST and TABLE: how many items */
    double number;              /* of NUMBER; of TRUTH: 1 or 0 */
    struct json *first, *next;  /* items of LIST and TABLE */
};

struct source {
    const char *at, *end;       /* a zero stands at the end */
    const char *kind, *name;    /* of the error if it is no JSON */
    int depth;
};

static _Noreturn void no_json(const struct source *source, const char *why) {
    fail(source->kind, "%s is not JSON: %s", source->name, why);
}

static void skip_spaces(struct source *source) {
    while (*source->at == ' ' || *source->at == '\t' || *source->at == '\r' || *source->at == '\n') source->at++;
}

static int skip(struct source *source, const char *word) {
    size_t length = strlen(word);
    if ((size_t)(source->end - source->at) < length || memcmp(source->at, word, length) != 0) return 0;
    source->at += length;
    return 1;
}

static int is_digit(char c) { return c >= '0' && c <= '9'; }

static void skip_digits(struct source *source) {
    if (!is_digit(*source->at)) no_json(source, "a digit was expected");
    while (is_digit(*source->at)) source->at++;
}

static void read_number(struct source *source, struct json *value) {
    value->type = NUMBER;
    value->text = source->at;
    skip(source, "-");
    if (!skip(source, "0")) skip_digits(source);
    if (skip(source, ".")) skip_digits(source);
    if (skip(source, "e") || skip(source, "E")) {
        if (!skip(source, "+")) skip(source, "-");
        skip_digits(source);
    }
    value->length = (size_t)(source->at - value->text);
    value->number = strtod(value->text, NULL);
}

static unsigned read_four_hex(struct source *source) {
    unsigned code = 0;
    for (int i = 0; i < 4; i++, source->at++) {
        char c = *source->at;
        if (is_digit(c)) code = 16 * code + (unsigned)(c - '0');
        else if (c >= 'a' && c <= 'f') code = 16 * code + (unsigned)(c - 'a') + 10;
        else if (c >= 'A' && c <= 'F') code = 16 * code + (unsigned)(c - 'A') + 10;
        else no_json(source, "four hexadecimal digits were expected");
    }
    return code;
}

/* The character of \uXXXX, of which two may stand for one, in UTF-8; returns the place after it. */
static char *read_escaped_character(struct source *source, char *to) {
    unsigned code = read_four_hex(source);
    if (code >= 0xD800 && code < 0xDC00 && skip(source, "\\u")) {
        unsigned low = read_four_hex(source);
        code = low >= 0xDC00 && low < 0xE000 ? 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00) : 0xFFFD;
    }
    if (code >= 0xD800 && code < 0xE000) code = 0xFFFD; /* half a pair */
    if (code < 0x80) {
        *to++ = (char)code;
    } else if (code < 0x800) {
        *to++ = (char)(0xC0 | code >> 6);
        *to++ = (char)(0x80 | (code & 63));
    } else if (code < 0x10000) {
        *to++ = (char)(0xE0 | code >> 12);
        *to++ = (char)(0x80 | (code >> 6 & 63));
        *to++ = (char)(0x80 | (code & 63));
    } else {
        *to++ = (char)(0xF0 | code >> 18);
        *to++ = (char)(0x80 | (code >> 12 & 63));
        *to++ = (char)(0x80 | (code >> 6 & 63));
        *to++ = (char)(0x80 | (code & 63));
    }
    return to;
}

/* The text of a string, of which the first quote was read. An escape is never shorter than what it stands for. */
static const char *read_text(struct source *source, size_t *length) {
    const char *end = source->at;
    while (end < source->end && *end != '"') end += *end == '\\' && end + 1 < source->end ? 2 : 1;
    char *text = take((size_t)(end - source->at) + 1, 1), *to = text;
    while (*source->at != '"') {
        if (source->at >= source->end) no_json(source, "a string has no end");
        if ((unsigned char)*source->at < ' ') no_json(source, "a string holds a control character");
        if (!skip(source, "\\")) {
            *to++ = *source->at++;
            continue;
        }
        static const char names[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
        const char *name = *source->at != '\0' ? strchr(names, *source->at) : NULL;
        if (skip(source, "u")) {
            to = read_escaped_character(source, to);
        } else if (name != NULL) {
            *to++ = meanings[name - names];
            source->at++;
        } else {
            no_json(source, "an escape is not known");
        }
    }
    source->at++;
    *length = (size_t)(to - text);
    return text;
}

static struct json *read_value(struct source *source);

/* The items of a list or a table, of which the first bracket was read. */
static void read_items(struct source *source, struct json *value, const char *bracket) {
    if (++source->depth > MAX_DEPTH) no_json(source, "it is nested too deeply");
    struct json **place = &value->first;
    skip_spaces(source);
    if (!skip(source, bracket)) {
        do {
            const char *key = NULL;
            if (value->type == TABLE) {
                size_t length;
                skip_spaces(source);
                if (!skip(source, "\"")) no_json(source, "a name in quotes was expected");
                key = read_text(source, &length);
                if (strlen(key) != length) key = ""; /* a zero in it: no name of ours, as the empty one is none */
                skip_spaces(source);
                if (!skip(source, ":")) no_json(source, "a colon was expected");
            }
            *place = read_value(source);
            (*place)->key = key;
            place = &(*place)->next;
            value->length++;
            skip_spaces(source);
        } while (skip(source, ","));
        if (!skip(source, bracket)) no_json(source, "a comma or a closing bracket was expected");
    }
    source->depth--;
}

static struct json *read_value(struct source *source) {
    struct json *value = take(1, sizeof *value);
    skip_spaces(source);
    if (skip(source, "{")) {
        value->type = TABLE;
        read_items(source, value, "}");
    } else if (skip(source, "[")) {
        value->type = LIST;
        read_items(source, value, "]");
    } else if (skip(source, "\"")) {
        value->type = TEXT;
        value->text = read_text(source, &value->length);
    } else if (skip(source, "true")) {
        value->type = TRUTH;
        value->number = 1;
    } else if (skip(source, "false")) {
        value->type = TRUTH;
    } else if (skip(source, "null")) {
        value->type = NOTHING;
    } else {
        read_number(source, value);
    }
    return value;
}

/* Whether the bytes are UTF-8, which is asked of every message. */
static int is_utf8(const unsigned char *at, const unsigned char *end) {
    static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
    while (at < end) {
        int more = *at < 0x80 ? 0 : *at >> 5 == 6 ? 1 : *at >> 4 == 14 ? 2 : *at >> 3 == 30 ? 3 : -1;
        if (more < 0 || end - at <= more) return 0;
        uint32_t code = more == 0 ? *at : *at & (63u >> more);
        for (int i = 1; i <= more; i++) {
            if (at[i] >> 6 != 2) return 0;
            code = code << 6 | (at[i] & 63u);
        }
        if (code < least[more] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return 0;
        at += more + 1;
    }
    return 1;
}

/* Read one JSON value, and nothing after it, from text that a zero follows. */
static struct json *read_json(const char *text, size_t length, const char *kind, const char *name) {
    struct source source = {text, text + length, kind, name, 0};
    if (!is_utf8((const unsigned char *)text, (const unsigned char *)text + length)) no_json(&source, "it is no UTF-8");
    struct json *value = read_value(&source);
    skip_spaces(&source);
    if (source.at != source.end) no_json(&source, "something follows the value");
    return value;
}

/* The value of a key, or NULL if it is absent or null. Of two with the same key, the last one counts. */
static const struct json *find(const struct json *table, const char *key) {
    const struct json *found = NULL;
    for (const struct json *one = table->first; one != NULL; one = one->next) {
        if (strcmp(one->key, key) == 0) found = one;
    }
    return found == NULL || found->type == NOTHING ? NULL : found;
}

static int is_text(const struct json *value, const char *text) {
    return value != NULL && value->type == TEXT && value->length == strlen(text) && strcmp(value->text, text) == 0;
}

static int is_whole(const struct json *value) {
    return value->type == NUMBER && isfinite(value->number) && value->number == floor(value->number);
}

/* A whole number; those beyond what a double counts exactly are cut to that, since none of them means anything here. */
static long long as_whole(const struct json *value) {
    double most = 9007199254740992.0;
    return (long long)fmin(fmax(value->number, -most), most);
}

/* ---- The checkpoint */

typedef float activation(float x);

struct layer {
    float *attention_norm, *q, *k, *v, *o, *mlp_norm, *gate, *up, *down; /* matrices are [out, in] */
};

struct model {
    int number;                 /* its handle */
    size_t vocab_size, hidden_size, inner_size, layer_count, heads, kv_heads, head_dim, max_length;
    int tied;
    float eps;
    activation *gate_activation;
    double *frequencies;        /* radians a token by which each pair of entries turns, [D/2] */
    struct layer *layers;
    float *embedding, *norm, *head;
    long long *eos_ids;
    size_t eos_count;
    struct pool memory;         /* all of the above */
    struct model *next;
};

static float silu(float x) { return (float)(x / (1 + exp(-(double)x))); }
static float gelu(float x) { return (float)(x * (1 + erf(x / sqrt(2.0))) / 2); }
static float gelu_tanh(float x) {
    return (float)(x * (1 + tanh(sqrt(2 / acos(-1.0)) * (x + 0.044715 * x * x * x))) / 2);
}
static float relu(float x) { return x > 0 ? x : 0; }

static activation *activation_named(const struct json *name) {
    if (name == NULL || is_text(name, "silu")) return silu;
    if (is_text(name, "gelu")) return gelu;
    if (is_text(name, "gelu_pytorch_tanh")) return gelu_tanh;
    if (is_text(name, "relu")) return relu;
    fail(REFUSED, "config.json has another hidden_act than silu, gelu, gelu_pytorch_tanh and relu");
}

/* A field that must be absent, null, or false, or have the one value that this engine knows. */
static void only(const struct json *config, const char *key, double known) {
    const struct json *value = find(config, key);
    if (value != NULL && ((value->type != TRUTH && value->type != NUMBER) || value->number != known))
        fail(REFUSED, "config.json has a value of %s that this engine does not offer", key);
}

/* A dimension; `absent` stands in for a field that is not there, and 0 for none. */
static size_t size_of(const struct json *config, const char *key, size_t absent) {
    const struct json *value = find(config, key);
    if (value == NULL && absent != 0) return absent;
    if (value == NULL || !is_whole(value) || value->number < 1 || value->number > MAX_SIZE)
        fail(REFUSED, "config.json needs %s, a whole number from 1 to %d", key, MAX_SIZE);
    return (size_t)value->number;
}

/* One parameter of RoPE, which may stand in rope_parameters, in rope_scaling, and rope_theta also by itself. */
static const struct json *rope_field(const struct json *config, const char *key, const char *other_name) {
    const struct json *newer = find(config, "rope_parameters"), *older = find(config, "rope_scaling");
    const struct json *found = NULL, *places[5] = {NULL};
    for (int i = 0; i < 2; i++) {
        const struct json *table = i == 0 ? newer : older;
        if (table == NULL) continue;
        if (table->type != TABLE) fail(REFUSED, "config.json has RoPE parameters that are no object");
        places[2 * i] = find(table, key);
        places[2 * i + 1] = other_name != NULL ? find(table, other_name) : NULL;
    }
    if (strcmp(key, "rope_theta") == 0) places[4] = find(config, key);
    for (int i = 0; i < 5; i++) {
        if (places[i] == NULL) continue;
        if (found != NULL && (places[i]->type != found->type || places[i]->number != found->number
                              || (found->type == TEXT && !is_text(places[i], found->text))))
            fail(REFUSED, "config.json says two things of %s", key);
        found = places[i];
    }
    return found;
}

/* A parameter of RoPE that is a number above 0: needed, or not to be there. */
static double rope_number(const struct json *config, const char *key, int needed) {
    const struct json *value = rope_field(config, key, NULL);
    if (!needed && value != NULL) fail(REFUSED, "config.json gives %s, for which its rope_type has no use", key);
    if (!needed) return 0;
    if (value == NULL || value->type != NUMBER || !(value->number > 0 && isfinite(value->number)))
        fail(REFUSED, "config.json needs %s for its rope_type, a number above 0", key);
    return value->number;
}

static void refuse_unknown_rope_fields(const struct json *table) {
    static const char *known[] = {"rope_theta", "rope_type", "type", "partial_rotary_factor", "factor",
                                  "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"};
    for (const struct json *one = table != NULL ? table->first : NULL; one != NULL; one = one->next) {
        size_t i = 0;
        while (i < sizeof known / sizeof *known && strcmp(one->key, known[i]) != 0) i++;
        if (i == sizeof known / sizeof *known && one->type != NOTHING)
            fail(REFUSED, "config.json has the RoPE parameter %s, which this engine does not know", one->key);
    }
}

static void read_rope(struct model *model, const struct json *config) {
    const struct json *type = rope_field(config, "rope_type", "type");
    int linear = is_text(type, "linear"), llama3 = is_text(type, "llama3");
    if (type != NULL && !linear && !llama3 && !is_text(type, "default"))
        fail(REFUSED, "config.json has another rope_type than default, linear and llama3");
    refuse_unknown_rope_fields(find(config, "rope_parameters"));
    refuse_unknown_rope_fields(find(config, "rope_scaling"));
    const struct json *part = rope_field(config, "partial_rotary_factor", NULL);
    if (part != NULL && (part->type != NUMBER || part->number != 1)) fail(REFUSED, "RoPE turns all of a head here");
    double theta = rope_field(config, "rope_theta", NULL) == NULL ? 10000 : rope_number(config, "rope_theta", 1);
    double factor = rope_number(config, "factor", linear || llama3);
    double low = rope_number(config, "low_freq_factor", llama3);
    double high = rope_number(config, "high_freq_factor", llama3);
    double original = rope_number(config, "original_max_position_embeddings", llama3);
    if (llama3 && high <= low) fail(REFUSED, "config.json has a high_freq_factor that is not above low_freq_factor");
    model->frequencies = take_from(&model->memory, model->head_dim / 2, sizeof(double));
    for (size_t i = 0; i < model->head_dim / 2; i++) {
        double plain = pow(theta, -2.0 * (double)i / (double)model->head_dim), kept = 1;
        if (linear) kept = 0;
        if (llama3) kept = fmin(fmax((original * plain / (2 * acos(-1.0)) - low) / (high - low), 0), 1);
        model->frequencies[i] = kept == 1 ? plain : kept * plain + (1 - kept) * plain / factor;
    }
}

/* Read config.json. What asks for anything that this engine does not do is refused, never passed over. */
static void read_config(struct model *model, const struct json *config) {
    if (config->type != TABLE) fail(REFUSED, "config.json holds no object");
    if (!is_text(find(config, "model_type"), "llama")) fail(REFUSED, "this engine offers the model_type llama alone");
    only(config, "attention_bias", 0);
    only(config, "mlp_bias", 0);
    only(config, "partial_rotary_factor", 1);
    if (find(config, "sliding_window") != NULL) fail(REFUSED, "this engine offers no sliding_window");
    if (find(config, "quantization_config") != NULL) fail(REFUSED, "this engine offers no quantization");
    model->vocab_size = size_of(config, "vocab_size", 0);
    model->hidden_size = size_of(config, "hidden_size", 0);
    model->inner_size = size_of(config, "intermediate_size", 0);
    model->layer_count = size_of(config, "num_hidden_layers", 0);
    model->heads = size_of(config, "num_attention_heads", 0);
    model->kv_heads = size_of(config, "num_key_value_heads", model->heads);
    model->head_dim = size_of(config, "head_dim", model->hidden_size / model->heads);
    model->max_length = size_of(config, "max_position_embeddings", 0);
    if (model->heads % model->kv_heads != 0 || model->head_dim % 2 != 0)
        fail(REFUSED, "num_key_value_heads must divide num_attention_heads, and head_dim must be even");
    const struct json *eps = find(config, "rms_norm_eps"), *tied = find(config, "tie_word_embeddings");
    if (eps != NULL && (eps->type != NUMBER || !(eps->number >= 0 && isfinite(eps->number))))
        fail(REFUSED, "config.json has an rms_norm_eps that is no number of 0 or more");
    if (tied != NULL && tied->type != TRUTH) fail(REFUSED, "tie_word_embeddings is true or false");
    model->eps = eps == NULL ? 1e-6f : (float)eps->number;
    model->tied = tied != NULL && tied->number == 1;
    model->gate_activation = activation_named(find(config, "hidden_act"));
    read_rope(model, config);
}

/* All bytes of a file of the checkpoint, with a zero after them; NULL if there is none and it may be missing. */
static char *read_file(const char *directory, const char *name, size_t *size, int may_be_missing) {
    char *path = take(strlen(directory) + strlen(name) + 2, 1);
    sprintf(path, "%s/%s", directory, name);
    FILE *file = fopen(path, "rb");
    if (file == NULL && may_be_missing) return NULL;
    if (file == NULL) fail(REFUSED, "%s cannot be opened; a checkpoint directory needs it", path);
    size_t used = 0, room = 1 << 16;
    char *data = malloc(room + 1);
    while (data != NULL) {
        used += fread(data + used, 1, room - used, file);
        if (used < room) break;
        char *larger = realloc(data, 2 * room + 1);
        if (larger == NULL) free(data);
        data = larger;
        room *= 2;
    }
    int broken = ferror(file);
    fclose(file);
    if (data == NULL) fail(RAISED, "out of memory: reading %s", path);
    char *kept = broken ? NULL : take(used + 1, 1);
    if (!broken) memcpy(kept, data, used);
    free(data);
    if (broken) fail(REFUSED, "%s cannot be read", path);
    *size = used;
    return kept;
}

static float half_to_float(uint16_t half) {
    int exponent = half >> 10 & 31;
    float fraction = (float)(half & 1023), sign = half >> 15 ? -1.0f : 1.0f;
    if (exponent == 31) return fraction != 0 ? NAN : sign * INFINITY;
    return sign * (exponent == 0 ? ldexpf(fraction, -24) : ldexpf(1024 + fraction, exponent - 25));
}

/* A number of 2 or 4 little-endian bytes. */
static float number_at(const unsigned char *at, size_t width, int is_half) {
    uint32_t bits = 0;
    float number;
    for (size_t i = 0; i < width; i++) bits |= (uint32_t)at[i] << 8 * i;
    if (is_half) return half_to_float((uint16_t)bits);
    if (width == 2) bits <<= 16; /* a bfloat16 is the upper half of a float32 */
    memcpy(&number, &bits, sizeof number);
    return number;
}

struct weights {
    const struct json *header;
    const unsigned char *data;
    size_t size, used;          /* bytes of data; tensors that were asked for */
};

/* The numbers of a tensor [rows, columns], or of a vector [columns] if rows is 0. */
static float *tensor(struct model *model, struct weights *weights, const char *name, size_t rows, size_t columns) {
    const struct json *entry = find(weights->header, name);
    if (entry == NULL || entry->type != TABLE) fail(REFUSED, "the checkpoint has no tensor %s", name);
    const struct json *dtype = find(entry, "dtype"), *shape = find(entry, "shape"), *span = find(entry, "data_offsets");
    int is_half = is_text(dtype, "F16");
    size_t width = is_text(dtype, "F32") ? 4 : is_half || is_text(dtype, "BF16") ? 2 : 0;
    if (width == 0) fail(REFUSED, "tensor %s is not stored as F32, F16 or BF16", name);
    const struct json *last = shape == NULL || shape->type != LIST ? NULL : rows == 0 ? shape->first
                              : shape->first != NULL ? shape->first->next : NULL;
    if (last == NULL || last->next != NULL || !is_whole(last) || last->number != (double)columns
        || (rows != 0 && (!is_whole(shape->first) || shape->first->number != (double)rows)))
        fail(REFUSED, "tensor %s does not have the shape that config.json asks for", name);
    const struct json *from = span == NULL || span->type != LIST ? NULL : span->first;
    const struct json *to = from != NULL ? from->next : NULL;
    size_t count = (rows == 0 ? 1 : rows) * columns;
    if (to == NULL || !is_whole(from) || !is_whole(to) || from->number < 0 || to->number > (double)weights->size
        || to->number - from->number != (double)count * (double)width)
        fail(REFUSED, "tensor %s does not lie in the file as its shape asks for", name);
    float *numbers = take_from(&model->memory, count, sizeof *numbers);
    const unsigned char *at = weights->data + (size_t)from->number;
    for (size_t i = 0; i < count; i++) numbers[i] = number_at(at + width * i, width, is_half);
    weights->used++;
    return numbers;
}

/* Read model.safetensors: 8 bytes with the length of the header, the header in JSON, and the numbers. */
static void read_weights(struct model *model, const char *directory) {
    size_t size, length = 0;
    char *data = read_file(directory, "model.safetensors", &size, 0);
    for (size_t i = 0; i < 8 && size >= 8; i++) length |= (size_t)(unsigned char)data[i] << 8 * i;
    if (size < 8 || length > size - 8) fail(REFUSED, "model.safetensors is shorter than its header says");
    char *header = take(length + 1, 1);
    memcpy(header, data + 8, length);
    struct weights weights = {read_json(header, length, REFUSED, "the header of model.safetensors"),
                              (unsigned char *)data + 8 + length, size - 8 - length, 0};
    if (weights.header->type != TABLE) fail(REFUSED, "the header of model.safetensors is no object");
    size_t hidden = model->hidden_size, inner = model->inner_size;
    size_t queries = model->heads * model->head_dim, keys = model->kv_heads * model->head_dim;
    model->embedding = tensor(model, &weights, "model.embed_tokens.weight", model->vocab_size, hidden);
    model->norm = tensor(model, &weights, "model.norm.weight", 0, hidden);
    model->head = model->tied ? model->embedding : tensor(model, &weights, "lm_head.weight", model->vocab_size, hidden);
    model->layers = take_from(&model->memory, model->layer_count, sizeof *model->layers);
    for (size_t number = 0; number < model->layer_count; number++) {
        struct layer *layer = &model->layers[number];
        const struct { float **place; const char *name; size_t rows, columns; } parts[] = {
            {&layer->attention_norm, "input_layernorm", 0, hidden},
            {&layer->q, "self_attn.q_proj", queries, hidden},
            {&layer->k, "self_attn.k_proj", keys, hidden},
            {&layer->v, "self_attn.v_proj", keys, hidden},
            {&layer->o, "self_attn.o_proj", hidden, queries},
            {&layer->mlp_norm, "post_attention_layernorm", 0, hidden},
            {&layer->gate, "mlp.gate_proj", inner, hidden},
            {&layer->up, "mlp.up_proj", inner, hidden},
            {&layer->down, "mlp.down_proj", hidden, inner},
        };
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
            char name[96];
            snprintf(name, sizeof name, "model.layers.%zu.%s.weight", number, parts[i].name);
            *parts[i].place = tensor(model, &weights, name, parts[i].rows, parts[i].columns);
        }
    }
    size_t metadata = find(weights.header, "__metadata__") != NULL;
    if (weights.header->length != weights.used + metadata)
        fail(REFUSED, "the checkpoint holds %zu tensors, and config.json gives a use for %zu",
             weights.header->length - metadata, weights.used);
}

/* EOS ids of generation_config.json, and of config.json where that names none. */
static void read_eos(struct model *model, const char *directory, const struct json *config) {
    size_t size;
    const char *text = read_file(directory, "generation_config.json", &size, 1);
    const struct json *found = NULL;
    if (text != NULL) {
        const struct json *generation = read_json(text, size, REFUSED, "generation_config.json");
        if (generation->type == TABLE) found = find(generation, "eos_token_id");
    }
    if (found == NULL) found = find(config, "eos_token_id");
    if (found == NULL) return;
    const struct json *first = found->type == LIST ? found->first : found;
    model->eos_ids = take_from(&model->memory, found->type == LIST ? found->length : 1, sizeof *model->eos_ids);
    for (const struct json *one = first; one != NULL; one = found->type == LIST ? one->next : NULL) {
        if (!is_whole(one)) fail(REFUSED, "eos_token_id is a token id, or a list of them");
        model->eos_ids[model->eos_count++] = as_whole(one);
    }
}

/* ---- The decoder */

/* A KV cache. Keys and values of a token lie together, [S, layers, H_kv, D], so that it grows at its end. */
struct session {
    int number;                 /* its handle */
    struct model *model;
    size_t length, room;        /* in tokens */
    float *keys, *values;
    struct session *next;
};

/* What one token needs on its way through the model. */
struct work {
    float *x, *normed, *q, *mixed, *projected, *gate, *up, *weights, *cos, *sin;
};

static size_t cache_width(const struct model *model) { return model->kv_heads * model->head_dim; }
static size_t cached_floats(const struct model *model) { return model->layer_count * cache_width(model); }

/* Memory for sequences of up to `positions` tokens. */
static struct work new_work(const struct model *model, size_t positions) {
    size_t queries = model->heads * model->head_dim, pairs = model->head_dim / 2;
    return (struct work){
        .x = take(model->hidden_size, sizeof(float)),
        .normed = take(model->hidden_size, sizeof(float)),
        .q = take(queries, sizeof(float)),
        .mixed = take(queries, sizeof(float)),
        .projected = take(model->hidden_size, sizeof(float)),
        .gate = take(model->inner_size, sizeof(float)),
        .up = take(model->inner_size, sizeof(float)),
        .weights = take(positions, sizeof(float)),
        .cos = take(pairs, sizeof(float)),
        .sin = take(pairs, sizeof(float)),
    };
}

/* Products of float32 in sums of float64, four side by side for speed. */
static float dot(const float *a, const float *b, size_t n) {
    double sums[4] = {0};
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        sums[0] += (double)a[i] * b[i];
        sums[1] += (double)a[i + 1] * b[i + 1];
        sums[2] += (double)a[i + 2] * b[i + 2];
        sums[3] += (double)a[i + 3] * b[i + 3];
    }
    for (; i < n; i++) sums[0] += (double)a[i] * b[i];
    return (float)(sums[0] + sums[1] + sums[2] + sums[3]);
}

/* out [rows] = matrix [rows, columns] times x [columns]. */
static void multiply(float *out, const float *matrix, const float *x, size_t rows, size_t columns) {
    for (size_t row = 0; row < rows; row++) out[row] = dot(matrix + row * columns, x, columns);
}

/* x over its root mean square, times the weight; eps stands under the root. */
static void rms_norm(float *out, const float *x, const float *weight, size_t n, float eps) {
    float root = sqrtf(dot(x, x, n) / (float)n + eps);
    for (size_t i = 0; i < n; i++) out[i] = x[i] / root * weight[i];
}

/* Turn each pair (i, i + D/2) of each head. */
static void rotate(float *x, size_t heads, size_t head_dim, const struct work *work) {
    size_t half = head_dim / 2;
    for (float *head = x; head < x + heads * head_dim; head += head_dim) {
        for (size_t i = 0; i < half; i++) {
            float a = head[i], b = head[i + half];
            head[i] = a * work->cos[i] - b * work->sin[i];
            head[i + half] = b * work->cos[i] + a * work->sin[i];
        }
    }
}

/* One query head: softmax of q . k / sqrt(D) over the tokens so far, and the mean of their values by it, [D].
 * keys and values point at the head in the first token's part of the cache; `stride` leads to the next token's. */
static void attend(float *out, const float *q, const float *keys, const float *values, size_t stride, size_t tokens,
                   size_t head_dim, float *weights) {
    float greatest = -INFINITY;
    double sum = 0;
    for (size_t t = 0; t < tokens; t++) {
        weights[t] = dot(q, keys + t * stride, head_dim) / sqrtf((float)head_dim);
        greatest = fmaxf(greatest, weights[t]);
    }
    for (size_t t = 0; t < tokens; t++) {
        weights[t] = expf(weights[t] - greatest);
        sum += weights[t];
    }
    for (size_t i = 0; i < head_dim; i++) {
        double mean = 0;
        for (size_t t = 0; t < tokens; t++) mean += (double)weights[t] * values[t * stride + i];
        out[i] = (float)(mean / sum);
    }
}

/* Feed one token to a session that has room for it. Unless `logits` is NULL, the scores [V] of the next go there. */
static void feed(struct session *session, long long token, float *logits, const struct work *work) {
    const struct model *model = session->model;
    size_t hidden = model->hidden_size, D = model->head_dim, width = cache_width(model), stride = cached_floats(model);
    size_t position = session->length++;
    for (size_t i = 0; i < D / 2; i++) {
        double angle = (double)position * model->frequencies[i];
        work->cos[i] = (float)cos(angle);
        work->sin[i] = (float)sin(angle);
    }
    memcpy(work->x, model->embedding + (size_t)token * hidden, hidden * sizeof(float));
    for (size_t number = 0; number < model->layer_count; number++) {
        const struct layer *layer = &model->layers[number];
        const float *keys = session->keys + number * width, *values = session->values + number * width;
        float *k = session->keys + position * stride + number * width;
        float *v = session->values + position * stride + number * width;

        rms_norm(work->normed, work->x, layer->attention_norm, hidden, model->eps);
        multiply(work->q, layer->q, work->normed, model->heads * D, hidden);
        multiply(k, layer->k, work->normed, width, hidden);
        multiply(v, layer->v, work->normed, width, hidden);
        rotate(work->q, model->heads, D, work);
        rotate(k, model->kv_heads, D, work);
        for (size_t head = 0; head < model->heads; head++) {
            size_t shared = head / (model->heads / model->kv_heads) * D; /* a group of query heads has one KV head */
            attend(work->mixed + head * D, work->q + head * D, keys + shared, values + shared, stride, position + 1, D,
                   work->weights);
        }
        multiply(work->projected, layer->o, work->mixed, hidden, model->heads * D);
        for (size_t i = 0; i < hidden; i++) work->x[i] += work->projected[i];

        rms_norm(work->normed, work->x, layer->mlp_norm, hidden, model->eps);
        multiply(work->gate, layer->gate, work->normed, model->inner_size, hidden);
        multiply(work->up, layer->up, work->normed, model->inner_size, hidden);
        for (size_t i = 0; i < model->inner_size; i++)
            work->gate[i] = model->gate_activation(work->gate[i]) * work->up[i];
        multiply(work->projected, layer->down, work->gate, hidden, model->inner_size);
        for (size_t i = 0; i < hidden; i++) work->x[i] += work->projected[i];
    }
    if (logits == NULL) return;
    rms_norm(work->normed, work->x, model->norm, hidden, model->eps);
    multiply(logits, model->head, work->normed, model->vocab_size, hidden);
}

/* Scores [count, V] of tokens that were checked, for a session with room for them. */
static float *feed_all(struct session *session, const long long *tokens, size_t count) {
    size_t V = session->model->vocab_size;
    float *scores = take(count * V, sizeof *scores);
    struct work work = new_work(session->model, session->length + count);
    for (size_t t = 0; t < count; t++) feed(session, tokens[t], scores + t * V, &work);
    return scores;
}

/* A session for this request alone. */
static struct session passing_session(struct model *model, size_t room) {
    size_t count = room * cached_floats(model);
    return (struct session){.model = model, .room = room, .keys = take(count, sizeof(float)),
                            .values = take(count, sizeof(float))};
}

/* Give a session room for so many tokens, or fail and leave it as it was. */
static void make_room(struct session *session, size_t tokens) {
    if (tokens <= session->room) return;
    size_t room = (tokens + BLOCK - 1) / BLOCK * BLOCK, size = room * cached_floats(session->model) * sizeof(float);
    float *keys = realloc(session->keys, size);
    if (keys != NULL) session->keys = keys;
    float *values = realloc(session->values, size);
    if (values != NULL) session->values = values;
    if (keys == NULL || values == NULL) fail(RAISED, "out of memory: a cache of %zu tokens", room);
    session->room = room;
}

/* Refuse what cannot follow `held` tokens. */
static void check_tokens(const struct model *model, const long long *tokens, size_t count, size_t held) {
    if (count == 0) fail(REFUSED, "there are no tokens; at least one is needed");
    for (size_t t = 0; t < count; t++) {
        if (tokens[t] < 0 || (size_t)tokens[t] >= model->vocab_size)
            fail(REFUSED, "token id %lld is out of range; ids are 0 to %zu", tokens[t], model->vocab_size - 1);
    }
    if (count > model->max_length - held)
        fail(REFUSED, "the sequence would hold %zu tokens; the limit is %zu", held + count, model->max_length);
}

/* ---- Fields of messages */

/* Whether a name is one of a list of words with spaces between them. */
static int among(const char *name, const char *words) {
    size_t length = strlen(name);
    if (strchr(name, ' ') != NULL) return 0;
    for (const char *at = words; length > 0 && (at = strstr(at, name)) != NULL; at++) {
        if ((at == words || at[-1] == ' ') && (at[length] == ' ' || at[length] == '\0')) return 1;
    }
    return 0;
}

/* A violation unless `value` is an object with all the fields of the one list, and else only those of the other. */
static void check_fields(const struct json *value, const char *where, const char *required, const char *allowed) {
    if (value == NULL || value->type != TABLE) fail(VIOLATION, "%s must be an object", where);
    size_t found = 0, needed = *required != '\0';
    for (const char *at = required; *at != '\0'; at++) needed += *at == ' ';
    for (const struct json *one = value->first; one != NULL; one = one->next) {
        for (const struct json *other = one->next; other != NULL && among(one->key, required); other = other->next) {
            if (strcmp(one->key, other->key) == 0) fail(VIOLATION, "%s says two things of %s", where, one->key);
        }
        if (among(one->key, required)) found++;
        else if (!among(one->key, allowed)) fail(VIOLATION, "%s has an unknown field %.40s", where, one->key);
    }
    if (found < needed) fail(VIOLATION, "%s needs the fields: %s", where, required);
}

/* A whole number of `least` or more; `absent` if the field is not there, or null and may be. */
static long long whole_field(const struct json *table, const char *key, long long least, long long absent) {
    const struct json *value = find(table, key);
    if (value == NULL) return absent;
    if (!is_whole(value) || as_whole(value) < least) fail(VIOLATION, "%s must be a whole number of its range", key);
    return as_whole(value);
}

/* A violation if a field is there and null. */
static void not_null(const struct json *table, const char *keys) {
    for (const struct json *one = table->first; one != NULL; one = one->next) {
        if (one->type == NOTHING && among(one->key, keys)) fail(VIOLATION, "%s must not be null", one->key);
    }
}

static int flag_field(const struct json *table, const char *key) {
    const struct json *value = find(table, key);
    if (value != NULL && value->type != TRUTH) fail(VIOLATION, "%s must be true or false", key);
    return value != NULL && value->number == 1;
}

/* A number, or 0 for null: what the words "inf", "-inf" and "nan" say is a number as well. */
static double real_field(const struct json *table, const char *key) {
    const struct json *value = find(table, key);
    if (value == NULL) return 0;
    if (is_text(value, "inf")) return INFINITY;
    if (is_text(value, "-inf")) return -INFINITY;
    if (is_text(value, "nan")) return NAN;
    if (value->type != NUMBER) fail(VIOLATION, "%s must be a number", key);
    return value->number;
}

struct ids {
    long long *at;
    size_t count;
};

static struct ids ids_of(const struct json *list, const char *where, long long least) {
    if (list == NULL || list->type != LIST) fail(VIOLATION, "%s must be a list of whole numbers", where);
    struct ids ids = {take(list->length, sizeof(long long)), 0};
    for (const struct json *one = list->first; one != NULL; one = one->next) {
        if (!is_whole(one) || as_whole(one) < least) fail(VIOLATION, "%s must hold whole numbers of its range", where);
        ids.at[ids.count++] = as_whole(one);
    }
    return ids;
}

static const struct json *list_field(const struct json *table, const char *key) {
    const struct json *value = find(table, key);
    if (value != NULL && value->type != LIST) fail(VIOLATION, "%s must be a list", key);
    return value;
}

/* The rows or columns that were asked for, which are all if the field is not there. */
static struct ids part_of(const struct json *wanted, const char *where, size_t size) {
    struct ids part;
    if (wanted == NULL) {
        part = (struct ids){take(size, sizeof(long long)), size};
        for (size_t i = 0; i < size; i++) part.at[i] = (long long)i;
        return part;
    }
    part = ids_of(wanted, where, 0);
    for (size_t i = 0; i < part.count; i++) {
        if ((size_t)part.at[i] >= size) fail(VIOLATION, "%s holds %lld; there are %zu", where, part.at[i], size);
    }
    return part;
}

/* Add an array to the reply: its place and shape to the line, its little-endian bytes to what follows. */
static void say_scores(const float *scores, size_t width, struct ids rows, struct ids columns) {
    say("{\"dtype\":\"float32\",\"shape\":[%zu,%zu],\"offset\":%zu}", rows.count, columns.count, payload.used);
    for (size_t r = 0; r < rows.count; r++) {
        for (size_t c = 0; c < columns.count; c++) {
            uint32_t bits;
            memcpy(&bits, &scores[(size_t)rows.at[r] * width + (size_t)columns.at[c]], sizeof bits);
            char *place = reserve(&payload, 4);
            for (int i = 0; i < 4; i++) place[i] = (char)(bits >> 8 * i & 255);
            payload.used += 4;
        }
    }
}

/* ---- Greedy decoding */

struct request {
    struct ids prompt, stop_ids;
    const struct json *stop_sequences;
    long long max_new_tokens, min_new_tokens, n, logprobs; /* logprobs: -1 for none */
    int stream;
};

static struct request read_request(const struct model *model, const struct json *given) {
    check_fields(given, "a request", "prompt",
                 "max_new_tokens min_new_tokens temperature top_k top_p min_p seed stop_ids eos stop_strings "
                 "stop_sequences n logprobs stream");
    not_null(given, "max_new_tokens min_new_tokens n eos stream stop_ids stop_strings stop_sequences");
    long long any = -1 - (1LL << 53); /* below all of them: of these, it is ours to refuse some */
    struct request request = {
        .prompt = ids_of(find(given, "prompt"), "prompt", any),
        .max_new_tokens = whole_field(given, "max_new_tokens", any, 16),
        .min_new_tokens = whole_field(given, "min_new_tokens", any, 0),
        .n = whole_field(given, "n", any, 1),
        .logprobs = whole_field(given, "logprobs", any, -1),
        .stop_sequences = list_field(given, "stop_sequences"),
        .stream = flag_field(given, "stream"),
    };
    double temperature = real_field(given, "temperature");
    whole_field(given, "top_k", any, 0);   /* filters take nothing from the most probable id, nor does a seed matter */
    whole_field(given, "seed", any, 0);
    real_field(given, "top_p");
    real_field(given, "min_p");
    const struct json *ids = find(given, "stop_ids"), *strings = list_field(given, "stop_strings");
    if (ids != NULL) request.stop_ids = ids_of(ids, "stop_ids", any);
    if (flag_field(given, "eos")) {
        struct ids both = {take(request.stop_ids.count + model->eos_count, sizeof(long long)), request.stop_ids.count};
        for (size_t i = 0; i < both.count; i++) both.at[i] = request.stop_ids.at[i];
        for (size_t i = 0; i < model->eos_count; i++) both.at[both.count++] = model->eos_ids[i];
        request.stop_ids = both;
    }
    for (const struct json *one = strings != NULL ? strings->first : NULL; one != NULL; one = one->next) {
        if (one->type != TEXT) fail(VIOLATION, "stop_strings must hold strings");
    }
    for (const struct json *one = request.stop_sequences != NULL ? request.stop_sequences->first : NULL; one != NULL;
         one = one->next) {
        if (ids_of(one, "stop_sequences", any).count == 0) fail(REFUSED, "a stop sequence is empty");
    }
    if (temperature != 0) fail(NOT_OFFERED, "sampling: this engine decodes greedily");
    if (strings != NULL && strings->length != 0) fail(NOT_OFFERED, "stop strings: this engine has no tokenizer");
    if (request.max_new_tokens < 0 || request.min_new_tokens < 0 || request.logprobs < -1)
        fail(REFUSED, "max_new_tokens, min_new_tokens and logprobs are 0 or more");
    if (request.n < 1 || request.n > MAX_COMPLETIONS) fail(REFUSED, "n is 1 to %d", MAX_COMPLETIONS);
    check_tokens(model, request.prompt.at, request.prompt.count, 0);
    return request;
}

static int contains(struct ids ids, long long token) {
    for (size_t i = 0; i < ids.count; i++) {
        if (ids.at[i] == token) return 1;
    }
    return 0;
}

/* Whether the newest tokens are one of the stop sequences. */
static int ends_with_sequence(const struct request *request, const long long *tokens, size_t count) {
    const struct json *list = request->stop_sequences;
    for (const struct json *one = list != NULL ? list->first : NULL; one != NULL; one = one->next) {
        size_t t = count - one->length;
        const struct json *id = one->length <= count ? one->first : NULL;
        while (id != NULL && as_whole(id) == tokens[t]) id = id->next, t++;
        if (one->length <= count && id == NULL) return 1;
    }
    return 0;
}

/* The most probable id that is allowed; of equals, the lowest. */
static long long most_probable(const float *scores, size_t V, struct ids banned) {
    long long best = -1;
    for (size_t id = 0; id < V; id++) {
        if (isnan(scores[id])) fail(REFUSED, "the scores hold NaN; nothing can be drawn from them");
        if ((best < 0 || scores[id] > scores[best]) && !contains(banned, (long long)id)) best = (long long)id;
    }
    if (best < 0) fail(REFUSED, "all ids are stop ids, and a stop may not come yet");
    return best;
}

static const float *sorted_by; /* qsort has no other way to tell `more_probable` what it sorts by */

static int more_probable(const void *a, const void *b) {
    size_t one = *(const size_t *)a, other = *(const size_t *)b;
    if (sorted_by[one] != sorted_by[other]) return sorted_by[one] > sorted_by[other] ? -1 : 1;
    return one < other ? -1 : 1;
}

/* Add the log-probabilities of the n most probable ids, as pairs; `order` is memory for V of them. */
static void say_logprobs(const float *scores, size_t V, long long n, size_t *order) {
    double sum = 0;
    for (size_t id = 0; id < V; id++) order[id] = id;
    sorted_by = scores;
    qsort(order, V, sizeof *order, more_probable);
    for (size_t id = 0; id < V; id++) sum += exp((double)scores[id] - scores[order[0]]);
    say("[");
    for (size_t i = 0; i < V && (long long)i < n; i++) {
        say("%s[%zu,", i == 0 ? "" : ",", order[i]);
        say_number((double)scores[order[i]] - scores[order[0]] - log(sum));
        say("]");
    }
    say("]");
}

/* Continue a prompt, and add the completion to the reply. */
static void say_completion(struct model *model, const struct request *request) {
    size_t left = model->max_length - request->prompt.count, budget = left, V = model->vocab_size, count = 0;
    if ((unsigned long long)request->max_new_tokens < left) budget = (size_t)request->max_new_tokens;
    struct session session = passing_session(model, request->prompt.count + budget);
    struct work work = new_work(model, session.room);
    long long *tokens = take(budget, sizeof *tokens);
    int told = request->logprobs >= 0, stopped = 0;
    float *scores = take(told && budget > 0 ? budget : 1, V * sizeof *scores); /* [new tokens, V], or [1, V] */
    size_t *order = take(told ? V : 0, sizeof *order);
    for (size_t t = 0; t < request->prompt.count; t++)
        feed(&session, request->prompt.at[t], t + 1 == request->prompt.count ? scores : NULL, &work);
    while (count < budget && !stopped) {
        float *row = told ? scores + count * V : scores;
        int early = (long long)count < request->min_new_tokens; /* then no stop id may be drawn */
        if (count > 0) feed(&session, tokens[count - 1], row, &work);
        tokens[count] = most_probable(row, V, early ? request->stop_ids : (struct ids){NULL, 0});
        count++;
        stopped = (long long)count > request->min_new_tokens
                  && (contains(request->stop_ids, tokens[count - 1]) || ends_with_sequence(request, tokens, count));
    }
    say("{\"tokens\":[");
    for (size_t t = 0; t < count; t++) say("%s%lld", t == 0 ? "" : ",", tokens[t]);
    say("],\"finish_reason\":\"%s\"", stopped ? "stop" : "length");
    for (size_t t = 0; request->stream && t < count; t++)
        say("%s[%lld]", t == 0 ? ",\"pieces\":[" : ",", tokens[t]);
    if (request->stream) say(count == 0 ? ",\"pieces\":[]" : "]");
    if (told) say(",\"logprobs\":[");
    for (size_t t = 0; told && t < count; t++) {
        if (t > 0) say(",");
        say_logprobs(scores + t * V, V, request->logprobs, order);
    }
    say(told ? "]}" : "}");
}

/* ---- The calls */

static struct model *models, *loading;     /* loading, opening: not yet among the others, */
static struct session *sessions, *opening;  /* and freed if the request fails */
static int last_handle, greeted, finished, accepting;

static struct model *model_of(const struct json *arguments) {
    long long number = whole_field(arguments, "model", 1, 0);
    for (struct model *one = models; one != NULL; one = one->next) {
        if (one->number == number) return one;
    }
    fail(VIOLATION, "no model %lld is open", number);
}

static struct session *session_of(const struct json *arguments) {
    long long number = whole_field(arguments, "session", 1, 0);
    for (struct session *one = sessions; one != NULL; one = one->next) {
        if (one->number == number) return one;
    }
    fail(VIOLATION, "no session %lld is open", number);
}

static void hello(const struct json *arguments) {
    if (find(arguments, "protocol") == NULL) fail(VIOLATION, "protocol must be a whole number");
    whole_field(arguments, "protocol", -(1LL << 53), 0);
    greeted = 1;
    say("{\"protocol\":%d,\"name\":\"c-engine\",\"version\":\"1\",\"format\":\"hf\","
        "\"precision\":{\"weights\":\"float32\",\"compute\":\"float32\",\"kv_cache\":\"float32\","
        "\"scores\":\"float32\",\"logprobs\":\"float64\"},"
        "\"choices\":{\"scores\":\"logits\",\"logprobs\":\"raw\",\"ties\":\"first\",\"temperature_zero\":\"greedy\","
        "\"stop_token\":\"returned\",\"eos_files\":[\"generation_config.json\",\"config.json\"],"
        "\"zero_tokens\":\"empty\",\"min_tokens\":\"mask\",\"long_prompt\":\"refused\","
        "\"long_continuation\":\"stops\",\"empty_prompt\":\"refused\",\"batch_invariant\":true},"
        "\"offers\":[\"accepts\",\"load\"]}", PROTOCOL);
}

static struct model *new_model(void) {
    loading = calloc(1, sizeof *loading);
    if (loading == NULL) fail(RAISED, "out of memory");
    return loading;
}

static void free_model(struct model *model) {
    release(&model->memory);
    free(model);
}

/* What it refuses is the reason in the reply, see `answer`. */
static void accepts(const struct json *arguments) {
    const struct json *config = find(arguments, "config");
    if (config == NULL || config->type != TABLE) fail(VIOLATION, "config must be an object");
    accepting = 1;
    read_config(new_model(), config);
    free_model(loading);
    loading = NULL;
    say("{\"reason\":null}");
}

static void load(const struct json *arguments) {
    const struct json *checkpoint = find(arguments, "checkpoint"), *needs = find(arguments, "needs");
    if (checkpoint == NULL || checkpoint->type != TEXT) fail(VIOLATION, "checkpoint must be a string");
    check_fields(needs, "needs", "", "max_tokens max_rows max_sessions top_n regime");
    not_null(needs, "max_tokens max_rows max_sessions top_n");
    const char *counts[] = {"max_tokens", "max_rows", "max_sessions", "top_n"};
    for (int i = 0; i < 4; i++) whole_field(needs, counts[i], 0, 0);
    const struct json *regime = find(needs, "regime");
    if (regime != NULL && regime->type != TEXT) fail(VIOLATION, "regime must be a string or null");
    if (regime != NULL) fail(REFUSED, "this engine has no other regimes");
    if (strlen(checkpoint->text) != checkpoint->length) fail(REFUSED, "the path holds a zero");
    size_t size;
    const char *text = read_file(checkpoint->text, "config.json", &size, 0);
    const struct json *config = read_json(text, size, REFUSED, "config.json");
    struct model *model = new_model();
    read_config(model, config);
    read_weights(model, checkpoint->text);
    read_eos(model, checkpoint->text, config);
    model->number = ++last_handle;
    model->next = models;
    models = model;
    loading = NULL;
    say("{\"model\":%d,\"vocab_size\":%zu,\"max_length\":%zu,", model->number, model->vocab_size, model->max_length);
    say("\"offers\":[\"score\",\"score_batch\",\"open\",\"generate\"]}");
}

/* Scores of one sequence, or of the rows and columns of them that were asked for. */
static void say_score(struct model *model, struct ids tokens, const struct json *rows, const struct json *columns) {
    struct ids some_rows = part_of(rows, "rows", tokens.count);
    struct ids some_columns = part_of(columns, "columns", model->vocab_size);
    check_tokens(model, tokens.at, tokens.count, 0);
    struct session session = passing_session(model, tokens.count);
    say_scores(feed_all(&session, tokens.at, tokens.count), model->vocab_size, some_rows, some_columns);
}

static long long any_id(void) { return -(1LL << 53); }

static void score(const struct json *arguments) {
    struct ids tokens = ids_of(find(arguments, "tokens"), "tokens", any_id());
    not_null(arguments, "rows columns");
    struct model *model = model_of(arguments);
    say("{\"scores\":");
    say_score(model, tokens, find(arguments, "rows"), find(arguments, "columns"));
    say("}");
}

static void score_batch(const struct json *arguments) {
    const struct json *sequences = list_field(arguments, "sequences"), *rows = list_field(arguments, "rows");
    not_null(arguments, "sequences rows columns");
    struct model *model = model_of(arguments);
    if (sequences == NULL || (rows != NULL && rows->length != sequences->length))
        fail(VIOLATION, "rows, where they are given, must be a list for each of the sequences");
    say("{\"scores\":[");
    const struct json *some = rows != NULL ? rows->first : NULL;
    for (const struct json *one = sequences->first; one != NULL; one = one->next) {
        if (one != sequences->first) say(",");
        say_score(model, ids_of(one, "sequences", any_id()), some, find(arguments, "columns"));
        if (some != NULL) some = some->next;
    }
    say("]}");
}

/* A session with room for the tokens of another, or for none. */
static void say_new_session(struct model *model, const struct session *other) {
    struct session *session = opening = calloc(1, sizeof *session);
    if (session == NULL) fail(RAISED, "out of memory");
    session->model = model;
    if (other != NULL) {
        size_t size = other->length * cached_floats(model) * sizeof(float);
        make_room(session, other->length);
        if (size > 0) memcpy(session->keys, other->keys, size);
        if (size > 0) memcpy(session->values, other->values, size);
        session->length = other->length;
    }
    session->number = ++last_handle;
    session->next = sessions;
    sessions = session;
    opening = NULL;
    say("{\"session\":%d,\"offers\":[\"extend\",\"fork\",\"truncate\",\"cache_bytes\",\"close\"]}", session->number);
}

static void open_session(const struct json *arguments) { say_new_session(model_of(arguments), NULL); }

static void fork_session(const struct json *arguments) {
    const struct session *session = session_of(arguments);
    say_new_session(session->model, session);
}

static void extend(const struct json *arguments) {
    struct ids tokens = ids_of(find(arguments, "tokens"), "tokens", any_id());
    not_null(arguments, "rows columns");
    struct session *session = session_of(arguments);
    struct model *model = session->model;
    struct ids rows = part_of(find(arguments, "rows"), "rows", tokens.count);
    struct ids columns = part_of(find(arguments, "columns"), "columns", model->vocab_size);
    check_tokens(model, tokens.at, tokens.count, session->length);
    make_room(session, session->length + tokens.count); /* from here on nothing but memory can fail */
    say("{\"scores\":");
    say_scores(feed_all(session, tokens.at, tokens.count), model->vocab_size, rows, columns);
    say("}");
}

static void truncate_session(const struct json *arguments) {
    const struct json *length = find(arguments, "length");
    if (length == NULL || !is_whole(length)) fail(VIOLATION, "length must be a whole number");
    struct session *session = session_of(arguments);
    if (length->number < 0 || length->number > (double)session->length)
        fail(REFUSED, "the session holds %zu tokens; it cannot be cut to %.0f", session->length, length->number);
    session->length = (size_t)length->number;
    say("{}");
}

static void cache_bytes(const struct json *arguments) {
    const struct session *session = session_of(arguments);
    say("{\"cache_bytes\":%zu}", 2 * session->room * cached_floats(session->model) * sizeof(float));
}

static void generate(const struct json *arguments) {
    const struct json *requests = list_field(arguments, "requests");
    if (requests == NULL) fail(VIOLATION, "requests must be a list");
    struct model *model = model_of(arguments);
    say("{\"completions\":[");
    for (const struct json *one = requests->first; one != NULL; one = one->next) {
        struct request request = read_request(model, one);
        if (one != requests->first) say(",");
        size_t start = reply.used;
        say_completion(model, &request);
        size_t length = reply.used - start;
        for (long long i = 1; i < request.n; i++) { /* greedy completions of one prompt are all the same */
            say(",");
            char *place = reserve(&reply, length);
            memcpy(place, reply.data + start, length);
            reply.used += length;
        }
    }
    say("]}");
}

static void free_session(struct session *session) {
    free(session->keys);
    free(session->values);
    free(session);
}

/* Close the session that `place` leads to. */
static void close_session(struct session **place) {
    struct session *session = *place;
    *place = session->next;
    free_session(session);
}

static void close_one(const struct json *arguments) {
    if (arguments->length != 1) fail(VIOLATION, "arguments must name either a model or a session");
    struct session **place = &sessions;
    if (find(arguments, "session") != NULL) {
        const struct session *session = session_of(arguments);
        while (*place != session) place = &(*place)->next;
        close_session(place);
    } else {
        struct model *model = model_of(arguments), **before = &models;
        while (*place != NULL) {
            if ((*place)->model == model) close_session(place);
            else place = &(*place)->next;
        }
        while (*before != model) before = &(*before)->next;
        *before = model->next;
        free_model(model);
    }
    say("{}");
}

static void bye(const struct json *arguments) {
    (void)arguments;
    finished = 1;
    say("{}");
}

static void not_offered(const struct json *arguments) {
    (void)arguments;
    fail(NOT_OFFERED, "this engine offers no operators by themselves");
}

static const struct {
    const char *name;
    void (*run)(const struct json *arguments);
    const char *required, *allowed; /* fields of the arguments */
} CALLS[] = {
    {"hello", hello, "protocol", ""},
    {"accepts", accepts, "config", ""},
    {"load", load, "checkpoint needs", ""},
    {"score", score, "model tokens", "rows columns"},
    {"score_batch", score_batch, "model sequences", "rows columns"},
    {"open", open_session, "model", ""},
    {"extend", extend, "session tokens", "rows columns"},
    {"fork", fork_session, "session", ""},
    {"truncate", truncate_session, "session length", ""},
    {"cache_bytes", cache_bytes, "session", ""},
    {"generate", generate, "model requests", ""},
    {"close", close_one, "", "model session"},
    {"bye", bye, "", ""},
    {"operators", not_offered, "", ""},
    {"attention", not_offered, "operator q k v causal", "visible"},
    {"rope", not_offered, "operator x positions base", ""},
    {"rms_norm", not_offered, "operator x weight eps", ""},
};

/* ---- The loop */

/* Read what a line announces after it, so that the next line is found whatever is wrong with this one. */
static void skip_bytes(long long count) {
    for (long long left = count; left > 0; left--) {
        if (getchar() == EOF) fail(VIOLATION, "the line announces %lld bytes, and fewer came", count);
    }
}

static const char *request_id;  /* as it stands in the request */
static size_t request_id_length;

static void answer_request(const struct json *message) {
    const struct json *id = message->type == TABLE ? find(message, "id") : NULL;
    const struct json *bytes = message->type == TABLE ? find(message, "bytes") : NULL;
    if (id != NULL && is_whole(id)) {
        request_id = id->text;
        request_id_length = id->length;
    }
    if (bytes != NULL && is_whole(bytes) && as_whole(bytes) <= MAX_BYTES) skip_bytes(as_whole(bytes));
    check_fields(message, "the request", "id call arguments", "bytes");
    not_null(message, "bytes");
    const struct json *call = find(message, "call"), *arguments = find(message, "arguments");
    if (id == NULL || !is_whole(id)) fail(VIOLATION, "id must be a whole number");
    if (call == NULL || call->type != TEXT) fail(VIOLATION, "call must be a string");
    for (size_t i = 0; i < sizeof CALLS / sizeof *CALLS; i++) {
        if (!is_text(call, CALLS[i].name)) continue;
        if (!greeted && CALLS[i].run != hello && CALLS[i].run != bye)
            fail(VIOLATION, "%s came before hello", call->text);
        check_fields(arguments, "arguments", CALLS[i].required, CALLS[i].allowed);
        if (bytes != NULL && CALLS[i].run != not_offered && whole_field(message, "bytes", 0, 0) != 0)
            fail(VIOLATION, "bytes came, and the request has no array");
        say("{\"id\":%.*s,\"result\":", (int)request_id_length, request_id);
        CALLS[i].run(arguments);
        if (payload.used > 0) say(",\"bytes\":%zu", payload.used);
        say("}\n");
        return;
    }
    fail(VIOLATION, "there is no call %.40s", call->text);
}

/* Answer one line; what failed gets an error reply. */
static void answer(const char *line, size_t length, int too_long) {
    reply.used = payload.used = 0;
    request_id = "null";
    request_id_length = 4;
    accepting = 0;
    if (setjmp(end_of_request) == 0) {
        if (too_long) fail(VIOLATION, "a line is longer than %d bytes", MAX_LINE);
        answer_request(read_json(line, length, VIOLATION, "the line"));
    } else {
        if (loading != NULL) free_model(loading);
        if (opening != NULL) free_session(opening);
        loading = NULL;
        opening = NULL;
        reply.used = payload.used = 0;
        say("{\"id\":%.*s,", (int)request_id_length, request_id);
        if (accepting && strcmp(failure, REFUSED) == 0) say("\"result\":{\"reason\":");
        else say("\"error\":{\"kind\":\"%s\",\"message\":", failure);
        say_text(failure_message);
        say("}}\n");
    }
    fwrite(reply.data, 1, reply.used, stdout);
    if (payload.used > 0) fwrite(payload.data, 1, payload.used, stdout);
    fflush(stdout);
    release(&request_memory);
}

int main(int count, char **words) {
    struct bytes line = {NULL, 0, 0};
    if (count > 1) {
        fprintf(stderr, "%s takes no options; it was given %s\n", words[0], words[1]);
        return 2;
    }
    if (setjmp(end_of_request) != 0) { /* while no request is answered */
        fprintf(stderr, "%s\n", failure_message);
        return 1;
    }
    while (!finished) {
        int c, too_long = 0;
        line.used = 0;
        while ((c = getchar()) != EOF && c != '\n') {
            if (line.used >= MAX_LINE) too_long = 1;
            else *reserve(&line, 1) = (char)c, line.used++;
        }
        if (c == EOF && line.used == 0) break;
        *reserve(&line, 0) = '\0';
        answer(line.data, line.used, too_long);
    }
    while (models != NULL) { /* for tools that look for leaks */
        struct model *model = models;
        models = model->next;
        free_model(model);
    }
    while (sessions != NULL) close_session(&sessions);
    free(line.data);
    free(reply.data);
    free(payload.data);
    return 0;
}
