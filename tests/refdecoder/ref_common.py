"""What the tests of refdecoder share beside fixtures."""

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJK"
