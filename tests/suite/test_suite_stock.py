"""A stock that forked children share: what one of them makes, it makes beside the others."""

from lmconform.matrix.forked import each
from lmconform.matrix.judged import one_thread
from lmconform.suite.plan import PROFILES, Plan
from lmconform.suite.stock import Stock
from lmconform.transport.client import Connection, EngineSpec


def test_children_write_checkpoints_of_one_name_into_folders_of_their_own() -> None:
    one_thread()
    stock = Stock()
    with Connection.start(EngineSpec("reference", in_process=True)) as connection:
        plan = Plan(connection, PROFILES["quick"], seed=0)
        shelf = stock.shelf(plan, "hf")
        mine = shelf.item("loud-0", plan).path

        def work(name: str) -> tuple[str, str]:
            own = stock.shelf(Plan(connection, PROFILES["quick"], seed=1), "hf")  # not in the parent's stock
            return str(shelf.item("loud-0#1", plan).path), str(own.item("loud-0", plan).path)

        found = [path for _, paths in each(["one", "other"], work, 2, 60.0) for path in paths]
        assert len({*found, str(mine)}) == 5
        assert shelf.item("loud-0", plan).path == mine
        stock.remove()
        assert not mine.exists()
