"""Whom a service lets in, what it refuses, and what it never says."""

import json
import socket
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import pytest

from graph_store import remote
from graph_store.client import describe, open_snapshot, snapshot_folder
from graph_store.embeddings.embedding import Embedding
from graph_store.graph import GraphError
from graph_store.protocol import (
    ColumnsTicket,
    EmbeddingTicket,
    FileTicket,
    NeighbourhoodTicket,
    PutEmbedding,
    parse_refusal,
)
from graph_store.record import snapshot_ids
from graph_store.service.refusal import without_paths
from graph_store.service.server import GraphService
from graph_store.service.settings import Limits, Settings
from tests.unit.graph_store.services import (
    READ_TOKEN,
    RECIPE,
    TOKEN,
    access,
    running,
    write_snapshot,
    write_source,
)

EMBEDDING = Embedding("v1", ("A", "B"), np.eye(2, 3, dtype=np.float32), {})
LIMITS = Limits(ticket_bytes=4000, put_bytes=10_000, genes=20, hops=2, edges=50, neighbours=5)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home-of-the-service")
    write_source(folder / "sources")
    (folder / "secret.csv").write_text("source,target\nA,B\n")
    (folder / "sources" / "link.csv").symlink_to(folder / "secret.csv")
    return folder


@pytest.fixture(scope="module")
def identity(home):
    return write_snapshot(home / "graphs")


@pytest.fixture(scope="module")
def service(home, identity):
    options = {"sources": home / "sources", "limits": LIMITS, "token": TOKEN, "read_token": READ_TOKEN}
    with running(home / "graphs", **options) as service:
        remote.put_embedding(remote.Service(service.location, TOKEN), EMBEDDING)
        yield service


def options(token):
    headers = [] if token is None else [(b"authorization", token)]
    return flight.FlightCallOptions(headers=headers, timeout=20)


def put(client, call, announced, table):
    descriptor = flight.FlightDescriptor.for_command(announced)
    writer, _ = client.do_put(descriptor, table.schema, call)
    with writer:
        writer.write_table(table)


CALLS = {
    "list_flights": lambda client, call, _: list(client.list_flights(options=call)),
    "get_flight_info": lambda client, call, name: client.get_flight_info(
        flight.FlightDescriptor.for_path(name), call
    ),
    "get_schema": lambda client, call, name: client.get_schema(flight.FlightDescriptor.for_path(name), call),
    "do_get": lambda client, call, name: client.do_get(
        flight.Ticket(FileTicket(snapshot=name, file="genes.arrow").to_bytes()), call
    ).read_all(),
    "do_put": lambda client, call, _: put(
        client,
        call,
        PutEmbedding(version="v1").to_bytes(),
        pa.table(
            {
                "gene": ["A", "B"],
                "value": pa.FixedSizeListArray.from_arrays(pa.array(EMBEDDING.z_PD.ravel()), 3),
            }
        ),
    ),
    "list_actions": lambda client, call, _: client.list_actions(call),
    **{
        action: lambda client, call, _, action=action, body=body: list(
            client.do_action(flight.Action(action, json.dumps(body).encode()), call)
        )
        for action, body in {
            "list": {},
            "list_embeddings": {},
            "health": {},
            "build": {"recipe": RECIPE},
            "nearest": {"version": "v1", "genes": ["A"], "count": 1},
        }.items()
    },
}
WRITING = {"do_put", "build"}


@pytest.mark.parametrize("name", CALLS)
def test_every_call_needs_the_token(service, identity, name):
    with flight.FlightClient(service.location) as client:
        for token in (
            None,
            b"",
            b"Bearer ",
            b"Bearer " + TOKEN[:-1].encode(),
            b"Bearer " + TOKEN.encode() + b"0",
            TOKEN.encode(),
            b"Basic " + TOKEN.encode(),
        ):
            # For get_schema, pyarrow has no error of its own kind.
            with pytest.raises(
                OSError if name == "get_schema" else flight.FlightUnauthenticatedError
            ) as failure:
                CALLS[name](client, options(token), identity)
            assert "Unauthenticated" in str(failure.value)
            assert TOKEN not in str(failure.value)
        CALLS[name](client, options(b"Bearer " + TOKEN.encode()), identity)
        reader = options(b"Bearer " + READ_TOKEN.encode())
        if name in WRITING:
            with pytest.raises(flight.FlightUnauthorizedError, match="this token may only read"):
                CALLS[name](client, reader, identity)
        else:
            CALLS[name](client, reader, identity)


def test_the_client_says_what_is_wrong_with_its_token_at_once(service, identity, tmp_path):
    patient = access(tmp_path, patience_s=1000)
    for token, message in (
        (None, "asks for a token"),
        ("wrong-token-0123456789", "does not know this token"),
    ):
        with pytest.raises(GraphError, match=f"{message}; set TXPERT_GRAPH_TOKEN or give --token-file"):
            open_snapshot(service.location, identity, patient._replace(token=token))
    for token in (TOKEN + "\n", "\u03b1" * 16, "a\0b"):
        with pytest.raises(GraphError, match="the token holds odd characters"):
            open_snapshot(service.location, identity, patient._replace(token=token))
    reader = remote.Service(service.location, READ_TOKEN, patience_s=1000)
    assert open_snapshot(service.location, identity, patient._replace(token=READ_TOKEN)).id == identity
    with pytest.raises(GraphError, match="this token may only read"):
        remote.put_embedding(reader, EMBEDDING)
    with pytest.raises(GraphError, match="this token may only read"):
        remote.build(reader, RECIPE, lambda *_: None)


def test_no_token_is_in_a_representation():
    given = (access(None, token=TOKEN), remote.Service("grpc://h:1", TOKEN), Settings("graphs", token=TOKEN))
    assert TOKEN not in repr(given)


@pytest.fixture
def ask(service):
    """The answer to a raw request, as its refusal; the whole error must not tell anything else."""

    def refused(call) -> str:
        with flight.FlightClient(service.location) as client, pytest.raises(pa.ArrowException) as failure:
            call(client, options(b"Bearer " + TOKEN.encode()))
        said = str(failure.value) + str(failure.value.extra_info)
        for secret in ("Traceback", "home-of-the-service", "site-packages", "graph_store/", TOKEN):
            assert secret not in said
        reason = parse_refusal(failure.value.extra_info)
        assert reason[:100] in str(failure.value)  # for clients that are not ours
        return reason

    return refused


PATH_LIKE = ["..", "../secret.csv", "/etc/passwd", "", "a/b", "a\\b", "%2e%2e", ".", "\0", "0" * 31, "0" * 33]


@pytest.mark.parametrize("name", [*PATH_LIKE, "A" * 32, "0" * 32 + "\n"])
def test_names_that_are_no_ids_are_refused_before_they_are_used(ask, service, identity, name):
    raw = json.dumps({"kind": "file", "snapshot": name, "file": "genes.arrow"}).encode()
    assert "snapshot: " in ask(lambda client, call: client.do_get(flight.Ticket(raw), call).read_all())
    body = json.dumps({"snapshot": name}).encode()
    assert "snapshot: " in ask(lambda client, call: list(client.do_action(("describe", body), call)))
    descriptor = flight.FlightDescriptor.for_path(name)
    assert "snapshot: " in ask(lambda client, call: client.get_flight_info(descriptor, call))
    with pytest.raises(GraphError, match="is no snapshot id"):
        describe(service.location, name)


@pytest.mark.parametrize(
    "name", [*PATH_LIKE[:9], "snapshot.json", "catalogue.sqlite", "genes.arrow/", "x" * 161]
)
def test_only_files_of_the_snapshot_are_handed_out(ask, identity, name):
    for kind in ("file", "columns"):
        raw = json.dumps({"kind": kind, "snapshot": identity, "file": name}).encode()
        said = ask(lambda client, call, raw=raw: client.do_get(flight.Ticket(raw), call).read_all())
        assert "file: " in said or "has no file" in said


@pytest.mark.parametrize("version", [*PATH_LIKE[:9], "-v", ".building-v1", "v" * 101])
def test_versions_are_checked_too(ask, version):
    raw = json.dumps({"kind": "embedding", "version": version}).encode()
    said = ask(lambda client, call: client.do_get(flight.Ticket(raw), call).read_all())
    assert "version: " in said
    announced = json.dumps({"kind": "put_embedding", "version": version, "origin": {}}).encode()
    table = pa.table({"gene": ["A"]})
    assert "version: " in ask(lambda client, call: put(client, call, announced, table))


def ticket(message):
    return lambda client, call: client.do_get(flight.Ticket(message), call).read_all()


def test_oversized_and_malformed_requests_are_refused(ask, identity):
    genes = [f"G{number:06d}" for number in range(21)]
    around = {"snapshot": identity, "genes": ["G000000"]}
    for message, expected in (
        (b"x" * 4001, "a ticket has 4001 bytes, more than 4000"),
        (b"[" * 3999, "JSON"),
        (b"null", ""),
        (b"\xff\xfe", ""),
        (b'{"kind": "shell"}', "kind"),
        (b'{"kind": "file", "snapshot": 7}', "snapshot"),
        (FileTicket(snapshot=identity, file="genes.arrow").to_bytes()[:-1] + b',"x":1}', "x: Extra"),
        (FileTicket(snapshot=identity, file="genes.arrow", offset=10**15).to_bytes(), "is behind them"),
        (NeighbourhoodTicket(snapshot=identity, genes=genes).to_bytes(), "21 genes are more than the 20"),
        (EmbeddingTicket(version="v1", genes=genes).to_bytes(), "21 genes are more than the 20"),
        (NeighbourhoodTicket(**around, hops=3).to_bytes(), "3 hops are more than the 2"),
        (NeighbourhoodTicket(**around, hops=2).to_bytes(), "edges, more than 50; ask for fewer"),
        (NeighbourhoodTicket(snapshot=identity, genes=["X", "G000001"]).to_bytes(), "has no gene X"),
        (NeighbourhoodTicket(**around, graphs=["kegg"]).to_bytes(), "has no graph kegg; it has go, string"),
        (ColumnsTicket(snapshot=identity, file="unmatched.csv").to_bytes(), "is no table"),
        (ColumnsTicket(snapshot=identity, file="genes.arrow", columns=["x"]).to_bytes(), "has no column x"),
        (
            ColumnsTicket(snapshot=identity, file="genes.arrow", columns=["name", "name"]).to_bytes(),
            "is asked for twice",
        ),
        (EmbeddingTicket(version="v1", genes=["C"]).to_bytes(), "has no gene 'C'"),
    ):
        assert expected in ask(ticket(message)), message
    for action, body, expected in (
        ("nearest", b"x" * 4001, "a request has 4001 bytes, more than 4000"),
        ("nearest", b'{"version": "v1", "genes": ["A"], "count": 6}', "6 neighbours are more than the 5"),
        ("nearest", json.dumps({"version": "v1", "genes": genes}).encode(), "21 genes are more than the 20"),
        ("describe", b"{}", "snapshot: Field required"),
        ("drop", b"", "no such action; there are list"),
    ):
        assert expected in ask(lambda client, call, a=action, b=body: list(client.do_action((a, b), call)))


def embedding_table(rows: int, width: int = 3) -> pa.Table:
    numbers = pa.array(np.zeros(rows * width, np.float32))
    return pa.table(
        {
            "gene": [f"G{number}" for number in range(rows)],
            "value": pa.FixedSizeListArray.from_arrays(numbers, width),
        }
    )


def test_embeddings_that_are_too_large_or_odd_are_not_kept(ask, service, home):
    before = sorted(path.name for path in (home / "graphs" / "embeddings").iterdir())
    good = embedding_table(2)
    for table, expected in (
        (embedding_table(1000), "more than the 10000 bytes allowed"),
        (pa.table({"gene": ["A"], "value": [1.0]}), "columns gene (text) and value"),
        (good.rename_columns(["value", "gene"]), "columns gene (text) and value"),
        (
            good.cast(pa.schema([("gene", pa.string()), ("value", pa.list_(pa.float64(), 3))])),
            "32-bit floats",
        ),
        (pa.concat_tables([good, good]), "listed twice"),
        (good.slice(0, 0), "not one vector for each"),
        (pa.table({"gene": pa.array([None, "B"], pa.string()), "value": good["value"]}), "is missing"),
        (
            good.set_column(1, "value", pa.array([[1, 2, None], [1, 2, 3]], pa.list_(pa.float32(), 3))),
            "empty numbers",
        ),
        (
            good.set_column(1, "value", pa.array([[1, 2, np.inf], [1, 2, 3]], pa.list_(pa.float32(), 3))),
            "the vector of G0 is not finite",
        ),
    ):
        announced = PutEmbedding(version="v2").to_bytes()
        assert expected in ask(lambda client, call, t=table, a=announced: put(client, call, a, t)), expected
    assert "JSON" in ask(lambda client, call: put(client, call, b"", good))
    too_long = PutEmbedding(version="v2", origin={"x": "y" * 4000}).to_bytes()
    assert "announcement" in ask(lambda client, call: put(client, call, too_long, good))
    assert sorted(path.name for path in (home / "graphs" / "embeddings").iterdir()) == before
    assert remote.health(remote.Service(service.location, TOKEN)).status == "serving"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("../secret.csv", "'../secret.csv': is not in the service's sources"),
        ("x/../../secret.csv", "is not in the service's sources"),
        ("/etc/passwd", "'/etc/passwd': is not in the service's sources"),
        ("~/secret.csv", "is not in the service's sources"),
        ("link.csv", "is not in the service's sources"),
        ("\0", "is not in the service's sources"),
        ("b.csv", "b.csv: is not in the service's sources; bring it there first"),
        (".", r"cannot be read|is no"),
    ],
)
def test_recipes_reach_no_file_outside_the_sources(service, home, path, expected):
    asked = remote.Service(service.location, TOKEN)
    source = {"kind": "edges", "path": path}
    recipes = [{"graphs": [{"name": "a", "source": source}]}]
    if path != ".":
        recipes += [RECIPE | {"nodes": path}, RECIPE | {"aliases": {"path": path}}]
    for recipe in recipes:
        with pytest.raises(GraphError, match=expected) as failure:
            remote.build(asked, recipe, lambda *_: None)
        assert str(home) not in str(failure.value)
    assert len(snapshot_ids(home / "graphs")) <= 2  # the written one, and that of RECIPE


def test_what_is_wrong_with_a_recipe_is_said_without_the_services_paths(service, home):
    asked = remote.Service(service.location, TOKEN)
    (home / "sources" / "bad.csv").write_text("source,target,weight\nA,B,1\nA,C,x\n")
    with pytest.raises(GraphError, match=r": bad\.csv row 3") as failure:
        remote.build(
            asked, {"graphs": [{"name": "a", "source": {"kind": "edges", "path": "bad.csv"}}]}, print
        )
    assert str(home) not in str(failure.value)
    with pytest.raises(GraphError, match=r"request: graphs.0.source"):
        remote.build(asked, {"graphs": [{"name": "a", "source": {"kind": "shell"}}]}, print)
    with pytest.raises(GraphError, match=r"graphs: two graphs are named a"):
        remote.build(asked, {"graphs": RECIPE["graphs"] * 2}, print)


def test_folders_with_common_names_do_not_spoil_messages(tmp_path, monkeypatch):
    write_source(tmp_path / "sources")
    monkeypatch.chdir(tmp_path)
    with running(Path("graphs"), sources=Path("sources")) as service:
        asked = remote.Service(service.location)
        with pytest.raises(GraphError, match="graphs: two graphs are named a; give each its own name"):
            remote.build(asked, {"graphs": RECIPE["graphs"] * 2}, print)
        assert remote.build(asked, RECIPE, lambda *_: None).id in snapshot_ids(tmp_path / "graphs")


def test_a_service_without_sources_builds_nothing(tmp_path):
    with running(tmp_path) as service, pytest.raises(GraphError, match="started without --sources"):
        remote.build(remote.Service(service.location), RECIPE, print)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/srv/graphs/abc/genes.arrow: is damaged", "abc/genes.arrow: is damaged"),
        ("/srv/graphs: cannot be written", "the service: cannot be written"),
        ("/var/lib/x.csv row 3: no", "x.csv row 3: no"),
        ("read ('/opt/a b.csv') and C/D, 1/2", "read ('a b.csv') and C/D, 1/2"),
        ("see https://string-db.org/cgi", "see https://string-db.org/cgi"),
    ],
)
def test_paths_are_cut(text, expected):
    assert without_paths(text, ["/srv/graphs"]) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host": "0.0.0.0"}, "host 0.0.0.0 needs a token"),
        ({"host": "::"}, "host :: needs a token"),
        ({"host": "example.org", "read_token": READ_TOKEN}, "needs a token"),
        ({"read_token": READ_TOKEN}, "a read-only token needs a token"),
        ({"token": TOKEN, "read_token": TOKEN}, "is the token itself"),
        ({"token": "short"}, "too short"),
        ({"token": "t" * 20 + "\n"}, "odd characters"),
        ({"tls_certificate": b"x"}, "both certificate and key"),
        ({"tls_certificate": b"x", "tls_key": b"x"}, "check certificate and key"),
        ({"blobs": "no-such-protocol://x", "cache": "CACHE"}, "cannot be used for snapshots"),
        ({"blobs": "memory://x"}, "name a folder for local copies"),
        ({"sources": "NOWHERE"}, "no such folder"),
    ],
)
def test_settings_that_no_service_may_run_with(tmp_path, settings, message):
    paths = {key: tmp_path / settings[key] for key in ("cache", "sources") if key in settings}
    given = {"blobs": str(tmp_path / "graphs"), "port": 0} | settings | paths
    with pytest.raises(GraphError, match=message) as failure:
        GraphService(Settings(**given))
    assert "\n" not in str(failure.value)


def test_a_port_in_use_is_refused(tmp_path):
    with (
        running(tmp_path / "a") as service,
        pytest.raises(GraphError, match="cannot be listened on") as failure,
    ):
        GraphService(Settings(blobs=str(tmp_path / "b"), port=service.port))
    assert f"port {service.port} of 127.0.0.1" in str(failure.value)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate for this machine's own address, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    )
    names = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    return (folder / "certificate.pem").read_bytes(), (folder / "key.pem").read_bytes()


def test_tls_with_the_right_authority_only(tmp_path, certificate):
    public, key = certificate
    identity = write_snapshot(tmp_path / "graphs")
    with running(tmp_path / "graphs", tls_certificate=public, tls_key=key, token=TOKEN) as service:
        assert service.location.startswith("grpc+tls://")
        trusting = access(tmp_path / "cache", token=TOKEN, tls_roots=public)
        assert open_snapshot(service.location, identity, trusting).id == identity
        with pytest.raises(GraphError, match="no authority that is trusted here"):
            describe(service.location, identity, trusting._replace(tls_roots=None, patience_s=1000))
        plain = service.location.replace("grpc+tls", "grpc")
        with pytest.raises(GraphError, match=r"does not answer.*grpc\+tls:// if it speaks TLS"):
            describe(plain, identity, trusting._replace(patience_s=0.5))
    with running(tmp_path / "graphs") as service:
        secret = service.location.replace("grpc", "grpc+tls")
        with pytest.raises(GraphError, match="does not speak TLS; write grpc:// in place"):
            describe(secret, identity, trusting._replace(patience_s=1000))


@pytest.mark.parametrize(
    "location",
    ["grpc://", "grpc://host", "grpc://host:x", "grpc://a@b:1", "grpc://h:1/path", "grpc+tls://:1"],
)
def test_addresses_that_are_none(location, tmp_path):
    with pytest.raises(GraphError, match="is no address of a service"):
        snapshot_folder(location, "0" * 32, access(tmp_path / "cache"))


def test_nothing_listens_or_something_else_does(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        location = f"grpc://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(GraphError, match=r"does not answer, tried for 0.3 s \(.*Connection refused"):
        snapshot_folder(location, "0" * 32, access(tmp_path, patience_s=0.3))
    with flight.FlightServerBase("grpc://127.0.0.1:0") as other:
        location = f"grpc://127.0.0.1:{other.port}"
        with pytest.raises(GraphError, match="does not answer as a graph service does"):
            snapshot_folder(location, "0" * 32, access(tmp_path))
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
