"""Shared fixtures: a home of its own and no network for each test, a tiny real model, and rows for the stages."""

import atexit
import gc
import hashlib
import json
import logging
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunewright.artifacts import QUARANTINE_SCHEMA, ROW_SCHEMA, SPLIT_SCHEMA, Base, Registered, Rows, Splits
from tunewright.config.environment import RARE_COLLECTIONS
from tunewright.store import locks
from tunewright.tools.conversation import Conversation as WholeConversation
from tunewright.tools.conversation import chat_of, texts_of

Message = dict[str, str]
Conversation = Sequence[str] | Sequence[Message]  # plain texts are turns of user, assistant, user, ...
WriteRows = Callable[..., pa.Table]
MakeRows = Callable[..., Rows]
MakeSplits = Callable[..., Splits]
Once = Callable[[str, Callable[[Path], object]], Path]
Harness = Callable[..., AbstractContextManager[None]]

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SENTENCES = (
    "You are a helpful AI assistant.",
    "The user asks a question and the assistant gives the answer that the user needs.",
    "Where is my order? Please send the money back to my card, I was charged twice.",
    '{"intent": "refund", "urgent": false, "language": "en"}',
    "one two three four five six seven eight nine ten 0 1 2 3 4 5 6 7 8 9",
)

# Started first, the longest before the others, so that no worker has one left at the end: see the list of slow files.
FIRST = (
    *("team_servers", "live_run", "up", "triggers", "ui", "strangers", "deploy"),
    *("cli", "flow", "docs", "release", "compare", "json", "verify"),  # with Prefect's server, which ends after them
    *("preference_flow", "reward_flow", "caching", "calls", "stopped_log"),
    *("prefect_server", "train", "nodes", "ranks", "engine", "distribution", "register", "stopping", "elsewhere"),
    *("architecture", "gguf", "api", "services", "files", "needless", "interrupts", "predict", "serve", "export"),
)
MAKE_PREFECT_DATABASE = """
import asyncio
from prefect.server.database import provide_database_interface
from prefect.server.models.block_registration import run_block_auto_registration

async def make() -> None:
    database = provide_database_interface()
    await database.create_db()
    async with await database.session() as session:
        await run_block_auto_registration(session=session)

asyncio.run(make())
"""
NO_BLOCKS = {  # of the servers, each of which would make all types of blocks in its database for 4 core-seconds
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
    "PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
}
CORE_SECONDS = "core_seconds"  # a property of each report
COUNTED = pytest.StashKey[float]()  # those that the reports so far have
SLOW_FILES = 30  # that the run lists at its end
SLOW_SECONDS = 5.0  # a file that takes fewer core-seconds is not listed
ON_PREFECT = pytest.StashKey[set[Path]]()  # the files whose tests share its server
END_PREFECT = pytest.StashKey[Callable[[], None]]()
FROZEN = pytest.StashKey[int]()  # how many modules were imported when they were last left alone
FEW_MODULES = 100  # for which that is not done again


def pytest_configure(config: pytest.Config) -> None:
    """Libraries read these when they are first imported, which is after this and before any fixture."""
    folder = tempfile.TemporaryDirectory(prefix="tests-")
    Path(folder.name).chmod(0o711)  # as through /tmp, other users may pass
    config.add_cleanup(folder.cleanup)
    os.environ |= {
        "TMPDIR": folder.name,  # of processes that tests start: their trainings wait for no others on this machine
        "HF_HUB_OFFLINE": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # three processes that no test needs
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **NO_BLOCKS,
    }
    # What a test imports, and each process that it starts, is compiled once, also where a shell says otherwise.
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    gc.set_threshold(*RARE_COLLECTIONS)
    atexit.register(gc.freeze)  # as quiet_libraries() does
    # A shell ignores Ctrl-C in what it starts in the background, and so would all processes that the tests start.
    os.environ.pop("COLUMNS", None)  # pytest-xdist sets it in its workers
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts the files that take longest first, and begins to count core-seconds."""
    config.stash[COUNTED] = sum(os.times()[:4])
    places = {f"test_{name}.py": place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(FIRST)))
    config.stash[ON_PREFECT] = {item.path for item in items if "prefect_harness" in getattr(item, "fixturenames", ())}


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Has the garbage collector leave alone what was imported: libraries collect all before each training.

    Ends Prefect's server before a file that does not need it: idle, it takes a fortieth of a core.
    """
    if len(sys.modules) > item.config.stash.get(FROZEN, 0) + FEW_MODULES:
        gc.collect()
        gc.freeze()
        item.config.stash[FROZEN] = len(sys.modules)
    if nextitem and nextitem.path not in {item.path, *item.config.stash[ON_PREFECT]}:
        item.config.stash.get(END_PREFECT, lambda: None)()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Notes in each report the core-seconds since the one before: of this process and the children it waited for."""
    report = yield
    spent = sum(os.times()[:4])
    report.user_properties.append((CORE_SECONDS, spent - item.config.stash[COUNTED]))
    item.config.stash[COUNTED] = spent
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Lists the files that took most core-seconds, and the seconds of their tests and fixtures."""
    spent: defaultdict[str, float] = defaultdict(float)
    seconds: defaultdict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                file = report.nodeid.partition("::")[0]
                measured: dict[str, Any] = dict(report.user_properties)
                spent[file] += measured.get(CORE_SECONDS, 0.0)
                seconds[file] += report.duration
    slow = [
        f"{spent[file]:12.1f} {seconds[file]:7.1f}  {file}"
        for file in sorted(spent, key=lambda file: -spent[file])[:SLOW_FILES]
        if spent[file] >= SLOW_SECONDS
    ]
    if slow:
        terminalreporter.section("slow files: core-seconds, seconds")
        terminalreporter.write("\n".join([*slow, f"{sum(spent.values()):12.1f}          in total"]) + "\n")


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Restore the environment variables, the log and the umask that a test, or a command in this process, sets."""
    os.umask(mask := os.umask(0o077))
    log = logging.getLogger("tunewright")
    level, handlers, propagate = log.level, [*log.handlers], log.propagate
    with patch.dict(os.environ):
        os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow sets it in a process that registers, such as a fixture's
        yield
    os.umask(mask)
    log.setLevel(level)
    log.handlers[:], log.propagate = handlers, propagate


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An S3 server on this machine, with a bucket."""
    import atomic_moto
    import httpx
    import s3fs
    from moto.server import ThreadedMotoServer

    monkeypatch.setattr(atomic_moto.S3Response, "put_object", atomic_moto.put_object)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    address = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    httpx.post(f"{address}/moto-api/reset").raise_for_status()  # of an earlier test in this process
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "who")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    store = s3fs.S3FileSystem()
    store.mkdir("bucket")
    yield store
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's artifacts go; its trainings wait for no others on this machine."""
    home = tmp_path / "home"
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(home))
    monkeypatch.setattr("tunewright.config.device_locks", lambda: tmp_path / "devices")
    return home


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """`once(name, make)` is a file or a folder that the first worker makes, by `make(path)`, and all workers read."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def once(name: str, make: Callable[[Path], object]) -> Path:
        file, unfinished = folder / name, folder / f"unfinished_{name}"
        with locks.exclusive(folder / f"{name}.lock"):
            if not file.exists():
                make(unfinished)
                unfinished.rename(file)
        return file

    return once


@pytest.fixture(scope="session")
def tiny_base(once: Once) -> Base:
    """A llama of two layers with random weights and a ChatML tokenizer of about 500 tokens, on disk."""
    return base_in(once("tiny_base", make_tiny_base), "tiny")


def base_in(folder: Path, key: str) -> Base:
    """The base whose weights and tokenizer are in a folder."""
    from tunewright.modeling.models import identity

    digest = identity(str(folder))
    return Base(
        stage="base",
        key=key,
        folder=folder,
        digest=digest,
        reference=str(folder),
        revision=None,
        location=Path(),
        weights_digest=digest,
    )


def make_tiny_base(folder: Path, tokenizer: Any = None) -> None:
    """Writes weights and tokenizer of the tiny base into a new folder; `tokenizer` takes the place of its own."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer or tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.set_num_threads(1)
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)  # pyright: ignore[reportArgumentType]


def tiny_tokenizer(
    template: str = CHATML, bos: str = "<|im_start|>", eos: str = "<|im_end|>", extra: Sequence[str] = ()
) -> Any:
    """A byte-level tokenizer of about 500 tokens; `extra` are more special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = list(dict.fromkeys(["<|endoftext|>", bos, eos, *extra]))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=eos,
        unk_token="<|endoftext|>",
        extra_special_tokens=list(extra),
        chat_template=template,
    )


@pytest.fixture
def write_rows() -> WriteRows:
    """`write_rows(path, conversations, file="data.jsonl")` writes and returns a ROW_SCHEMA table, one line a row."""

    def write(path: Path, conversations: Sequence[Conversation], *, file: str = "data.jsonl") -> pa.Table:
        table = pa.Table.from_pylist(
            [_row(messages(given), file, line) for line, given in enumerate(conversations, start=1)], ROW_SCHEMA
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        return table

    return write


@pytest.fixture
def make_rows(tmp_path: Path, write_rows: Callable[..., pa.Table]) -> MakeRows:
    """`make_rows(conversations, refused=2)` is what ingest hands on: these rows or a `table`, and refusals."""

    def make(conversations: Sequence[Any] = (), *, table: pa.Table | None = None, refused: int = 0) -> Rows:
        folder = tmp_path / "rows"
        written = write_rows(folder / "rows.parquet", conversations) if table is None else table
        folder.mkdir(exist_ok=True)
        pq.write_table(written, folder / "rows.parquet")
        lines = [
            {"file": "data.jsonl", "line": 1000 + n, "reason": "bad_json", "detail": "no JSON", "text": "{"}
            for n in range(refused)
        ]
        pq.write_table(pa.Table.from_pylist(lines, QUARANTINE_SCHEMA), folder / "quarantine.parquet")
        return Rows(
            stage="ingest",
            folder=folder,
            digest=hashlib.sha256((folder / "rows.parquet").read_bytes()).hexdigest(),
            num_read=len(written) + refused,
            num_rows=len(written),
            num_quarantined=refused,
            reasons={"bad_json": refused} if refused else {},
            detected={"data.jsonl": "jsonl, messages"},
        )

    return make


@pytest.fixture
def make_splits(tmp_path: Path) -> MakeSplits:
    """`make_splits(train, validation, test)` is a Splits artifact of these conversations, each row its own cluster."""
    return partial(write_splits, tmp_path)


@pytest.fixture(scope="session")
def mlflow_database(once: Once) -> Path:
    """An empty MLflow database: to make one takes MLflow six seconds."""

    def make(file: Path) -> None:
        from mlflow import MlflowClient

        MlflowClient(f"sqlite:///{file}")

    return once("mlflow.db", make)


@pytest.fixture(scope="session")
def architectures(once: Once, tiny_base: Base) -> Path:
    """The folder in which a home keeps the probe of the tiny base: a process imports libraries for 3 s for it."""

    def make(folder: Path) -> None:
        from tunewright.modeling import architecture

        fields = json.loads((tiny_base.weights / "config.json").read_text())
        with pytest.MonkeyPatch.context() as patched, tempfile.TemporaryDirectory() as home:
            patched.setenv("TUNEWRIGHT_HOME", home)
            architecture._kept.cache_clear()
            architecture.probe(fields)
            shutil.copytree(Path(home) / "architectures", folder)

    return once("architectures", make)


@pytest.fixture(scope="session")
def prefect_database(once: Once) -> Path:
    """A database of Prefect's server with its types of blocks alone: to make one takes 13 s of processor time."""

    def make(file: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "prefect.db"
            own = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{made}"}
            subprocess.run([sys.executable, "-c", MAKE_PREFECT_DATABASE], env=os.environ | own, check=True)
            with closing(sqlite3.connect(made)) as connection:
                connection.execute("VACUUM INTO ?", (str(file),))  # with what is still in its log

    return once("prefect.db", make)


@pytest.fixture(scope="session")
def ready(mlflow_database: Path, prefect_database: Path, architectures: Path) -> tuple[Path, Path, Path]:
    """The databases and probes that the home of a `tunewright up` can begin with, where it is not to make its own."""
    return mlflow_database, prefect_database, architectures


@pytest.fixture(scope="session")
def prefect_harness(prefect_database: Path, pytestconfig: pytest.Config) -> Iterator[Harness]:
    """`with prefect_harness():` has a Prefect server for flows, which files of this process share.

    `with prefect_harness(own=True):` has one that is new, and ends with the block.
    """
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.testing import utilities

    shared: dict[int, SubprocessASGIServer] = {}  # by the port that was asked for

    def end() -> None:
        while shared:
            shared.popitem()[1].stop()

    def folder() -> str:
        made = tempfile.mkdtemp()
        shutil.copy(prefect_database, Path(made) / "prefect-test.db")
        return made

    @contextmanager
    def harness(*, own: bool = False) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(patch.object(utilities, "mkdtemp", folder))
            if not own:
                if not shared:
                    port = _free_port()
                    shared[port] = SubprocessASGIServer(port)
                ((port, server),) = shared.items()
                stack.enter_context(patch.object(utilities, "_find_available_port", lambda: port))
                stack.enter_context(patch.object(server, "stop", lambda: None))
            with utilities.prefect_test_harness(server_startup_timeout=120):
                yield

    pytestconfig.stash[END_PREFECT] = end
    yield harness
    end()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="session")
def tuned(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of train: an adapter that changes the tiny base's answers, contract and curves."""
    from registered import tune

    return tune(tiny_base, tmp_path_factory.mktemp("tuned"))


@pytest.fixture(scope="session")
def said(tiny_base: Base, tuned: Path) -> list[str]:
    """The tuned model's answers to the test rows of `register_candidate`."""
    from registered import ask

    return ask(tiny_base, tuned)


@pytest.fixture
def register_candidate(
    home: Path, mlflow_database: Path, tiny_base: Base, tuned: Path, said: list[str], make_splits: Any, tmp_path: Path
) -> Callable[..., Registered]:
    """`register_candidate(decision="promote", digest="a", answers=[...])`, in an MLflow database of this test's own."""
    from registered import QUESTIONS, register_candidate

    home.mkdir(exist_ok=True)
    shutil.copy(mlflow_database, home)
    splits = make_splits([("q", "a")], [("r", "b")], [(question, "yes") for question in QUESTIONS])
    return partial(register_candidate, tmp_path, tuned, said, splits, base=tiny_base)


@pytest.fixture
def key(tmp_path: Path) -> tuple[Path, Path]:
    """The files of a private key and of its public key."""
    from make_keys import write_keys

    return write_keys(tmp_path / "keys")


def write_splits(
    place: Path, train: Sequence[Conversation], validation: Sequence[Conversation], test: Sequence[Conversation]
) -> Splits:
    """The artifact of `make_splits`, in a folder of any scope."""
    line = 0
    splits = {"train": train, "validation": validation, "test": test}
    digest = hashlib.sha256(json.dumps(splits).encode()).hexdigest()
    folder = place / "splits" / digest[:8]
    folder.mkdir(parents=True, exist_ok=True)
    for split, conversations in splits.items():
        rows = []
        for given in conversations:
            line += 1
            whole = given if isinstance(given, WholeConversation) else messages(given)
            rows.append(_row(texts_of(whole), "data.jsonl", line) | {"chat": chat_of(whole), "cluster": line})
        pq.write_table(pa.Table.from_pylist(rows, SPLIT_SCHEMA), folder / f"{split}.parquet")
    pq.write_table(QUARANTINE_SCHEMA.empty_table(), folder / "quarantine.parquet")
    return Splits(
        stage="split",
        key=digest[:20],
        folder=folder,
        digest=digest,
        num_train=len(train),
        num_validation=len(validation),
        num_test=len(test),
        num_clusters=line,
        largest_similarity=0.0,
        random_leak_share=0.0,
    )


def messages(conversation: Conversation) -> list[Message]:
    """The conversation's messages; plain texts are given the roles user, assistant, user, ..."""
    roles = ("user", "assistant")
    return [
        {"role": roles[position % 2], "content": turn} if isinstance(turn, str) else turn
        for position, turn in enumerate(conversation)
    ]


def _row(conversation: list[Message], file: str, line: int) -> dict[str, object]:
    canonical = json.dumps(conversation, sort_keys=True, ensure_ascii=False)
    row_id = hashlib.sha256(canonical.encode()).hexdigest()
    return {"row_id": row_id, "source": file, "file": file, "line": line, "group": None, "messages": conversation}
