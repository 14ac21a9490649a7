"""The hub for tests, asked by the real client."""

import hashlib
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi, constants, hf_hub_download, list_repo_files, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

REPO = "someone/things"
LARGE = bytes(range(256)) * 16
RETRIES = pytest.mark.skipif(
    not hasattr(huggingface_hub, "close_session"), reason="before version 1, the client does not resume a cut download"
)


def download(name="large.bin", **options):
    """The bytes of a file, by the client."""
    return Path(hf_hub_download(REPO, name, repo_type="dataset", **options)).read_bytes()


@pytest.mark.parametrize("name, data", [("in a folder/small.txt", b"small"), ("large.bin", LARGE), ("empty.zip", b"")])
def test_a_file_is_downloaded_once(hub, name, data):
    commit = hub.put(REPO, name, data)
    assert download(name) == data == download(name, revision=commit)
    fetched = [path for method, path, _ in hub.requests if method == "GET"]
    small = [f"/datasets/{REPO}/resolve/main/{name}"] if data else []  # the client does not ask for no bytes
    assert fetched == ([f"/cdn/{hashlib.sha256(data).hexdigest()}"] if len(data) > 1000 else small)


def test_git_would_name_a_small_file_alike(hub, tmp_path):
    hub.put(REPO, "a.txt", b"hello\n")
    path = hf_hub_download(REPO, "a.txt", repo_type="dataset")
    assert Path(path).resolve().name == "ce013625030ba8dba906f756967f9e9ca394464a", "what git hash-object gives"
    assert Path(path).is_relative_to(tmp_path)


@RETRIES
@pytest.mark.parametrize("name, data", [("small.txt", LARGE[:900]), ("large.bin", LARGE)])
def test_a_download_that_is_cut_goes_on_where_it_stopped(hub, name, data):
    hub.put(REPO, name, data)
    hub.faults[name] = ["cut", "cut"]
    assert download(name) == data
    ranges = [asked for method, _, asked in hub.requests if method == "GET"]
    assert ranges == ([None, "bytes=256-", "bytes=512-"] if len(data) == 900 else [None, "bytes=2048-", "bytes=3072-"])
    assert hub.faults[name] == []


@RETRIES
@pytest.mark.parametrize("name, data", [("small.txt", b"small"), ("large.bin", LARGE)])
def test_faults(hub, name, data):
    hub.put(REPO, name, data)
    hub.faults[name] = ["404", "500", "500", "wrong"]
    with pytest.raises(EntryNotFoundError):
        download(name)
    hub.requests.clear()
    wrong = download(name)  # two failures of HEAD are tried again; then the client trusts what it gets
    assert [method for method, *_ in hub.requests] == ["HEAD", "HEAD", "HEAD", "GET"]
    assert len(wrong) == len(data) and all(a != b for a, b in zip(wrong, data, strict=True))
    assert download(name, force_download=True) == data
    hub.faults[name] = ["500"] * 20
    hub.put(REPO, name, data + data)
    with pytest.raises(LocalEntryNotFoundError, match="locate the file on the Hub"):
        download(name, cache_dir=constants.HF_HUB_CACHE + "2")


@pytest.mark.parametrize("name, data", [("small.txt", b"small"), ("large.bin", LARGE)])
def test_a_get_that_fails(hub, name, data):
    hub.put(REPO, name, data)
    hub.faults[name] = ["500"]
    with pytest.raises(urllib.error.HTTPError, match="500"):
        urllib.request.urlopen(f"{hub.address}/datasets/{REPO}/resolve/main/{name}")
    assert urllib.request.urlopen(f"{hub.address}/datasets/{REPO}/resolve/main/{name}").read() == data


def test_ranges(hub):
    hub.put(REPO, "a.txt", b"0123456789")

    def answer(asked):
        url = f"{hub.address}/datasets/{REPO}/resolve/main/a.txt"
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Range": asked})) as response:
            return response.status, response.headers["Content-Range"], response.read()

    assert answer("bytes=7-") == answer("bytes=7-99") == (206, "bytes 7-9/10", b"789")
    assert answer("bytes=2-4") == (206, "bytes 2-4/10", b"234")
    with pytest.raises(urllib.error.HTTPError, match="416") as raised:
        answer("bytes=10-")
    assert raised.value.headers["Content-Range"] == "bytes */10"


def test_what_is_missing_has_the_errors_of_the_client(hub):
    hub.put(REPO, "a.txt", b"a")
    with pytest.raises(EntryNotFoundError):
        download("b.txt")
    with pytest.raises(RevisionNotFoundError):
        download("a.txt", revision="0" * 40)
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download(REPO, "a.txt")  # there is no such model
    for call in (HfApi().repo_info, list_repo_files, snapshot_download):
        with pytest.raises(RepositoryNotFoundError):
            call("someone/nothing", repo_type="dataset")
    assert not HfApi().repo_exists(REPO) and HfApi().file_exists(REPO, "a.txt", repo_type="dataset")


def test_a_put_makes_a_commit(hub):
    old = hub.put(REPO, "a.txt", b"old")
    assert download("a.txt") == b"old"
    new = hub.put(REPO, "a.txt", b"new")
    assert hub.put(REPO, "a.txt", b"new") not in {old, new} and len(old) == 40
    assert download("a.txt") == b"new" and download("a.txt", revision=old) == b"old"
    assert HfApi().dataset_info(REPO, revision=old).sha == old
    hub.put(REPO, "folder/b.pt", LARGE)
    assert list_repo_files(REPO, repo_type="dataset") == ["a.txt", "folder/b.pt"]
    entries = list(HfApi().list_repo_tree(REPO, "folder", repo_type="dataset"))
    assert [(entry.path, entry.lfs.sha256) for entry in entries] == [("folder/b.pt", hashlib.sha256(LARGE).hexdigest())]


@pytest.mark.parametrize("repo_type", ["dataset", "model"])
def test_a_folder_is_uploaded_and_comes_back(hub, tmp_path, repo_type):
    files = {"README.md": b"# Things", "data/large.bin": LARGE, "data/small.zip": b"zip", "empty.pt": b""}
    for name, data in files.items():
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).write_bytes(data)
    options = {"repo_id": REPO, "repo_type": repo_type}
    assert HfApi().create_repo(**options).repo_id == HfApi().create_repo(**options, exist_ok=True).repo_id == REPO
    with pytest.raises(HfHubHTTPError, match="409"):
        HfApi().create_repo(**options)
    commit = HfApi().upload_folder(folder_path=tmp_path / "from", **options).oid
    assert hub.files(REPO, repo_type) == files and HfApi().repo_info(**options).sha == commit
    assert [method for method, *_ in hub.requests].count("PUT") == 2, "the large file and the archive"
    snapshot = Path(snapshot_download(**options))
    assert {name: (snapshot / name).read_bytes() for name in files} == files
    assert HfApi().upload_folder(folder_path=tmp_path / "from", **options).oid == commit, "nothing to do again"
    HfApi().delete_file("README.md", **options)
    assert set(hub.files(REPO, repo_type)) == set(files) - {"README.md"}


@pytest.mark.parametrize("token", [False, "hf_other"])
def test_an_upload_needs_the_token(hub, token):
    hub.put(REPO, "a.txt", b"a")
    with pytest.raises(HfHubHTTPError, match="Invalid") as raised:
        HfApi(token=token).upload_file(path_or_fileobj=b"b", path_in_repo="b", repo_id=REPO, repo_type="dataset")
    assert raised.value.response.status_code == 401
    sha256 = hashlib.sha256(b"c").hexdigest()
    with pytest.raises(urllib.error.HTTPError, match="403"):  # storage takes only what was announced with the token
        urllib.request.urlopen(urllib.request.Request(f"{hub.storage}/cdn/{sha256}", b"c", method="PUT"))
    assert hub.files(REPO) == {"a.txt": b"a"}


def test_a_child_process_uses_the_hub(hub):
    hub.put(REPO, "large.bin", LARGE)
    code = f"from huggingface_hub import *; print(hf_hub_download({REPO!r}, 'large.bin', repo_type='dataset'))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert Path(result.stdout.strip()).read_bytes() == LARGE


@pytest.mark.parametrize("time", ["first", "second"])  # transformers keeps the endpoint it saw first
def test_from_pretrained(hub, tmp_path, time):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    config = transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=32, bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path / "model")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"to": 0, "be": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(tmp_path / "model")
    for path in (tmp_path / "model").iterdir():
        hub.put("org/tiny", path.name, path.read_bytes(), repo_type="model")
    assert transformers.AutoConfig.from_pretrained("org/tiny").n_embd == 16
    assert transformers.AutoTokenizer.from_pretrained("org/tiny")("to be or")["input_ids"] == [0, 1, 2]
    loaded = transformers.GPT2LMHeadModel.from_pretrained("org/tiny").eval()
    tokens = torch.arange(6)[None]
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert not hasattr(transformers.utils.hub, "hf_api") or transformers.utils.hub.hf_api().endpoint == hub.address
    assert any("/cdn/" in path for _, path, _ in hub.requests)
