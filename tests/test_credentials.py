"""Signed pictures: who signed them, and that a changed byte is told."""

import shutil
import subprocess

import numpy as np
import pytest
from conftest import tiny_pipeline
from PIL import Image

from nvb_diffusers import cli
from nvb_diffusers.credentials import Signature, open_certificate, read_signature
from nvb_diffusers.provenance import save_marked, save_marked_video

OPENSSL = shutil.which("openssl")
SETTINGS = """
[req]
distinguished_name = dn
prompt = no
[dn]
CN = Test root
[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[signer]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = emailProtection
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A signer's certificate with its root, and the key."""
    if OPENSSL is None:
        pytest.skip("no openssl is installed")
    folder = tmp_path_factory.mktemp("certificate")
    (folder / "settings").write_text(SETTINGS)
    new_key = "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out"
    for command in (
        f"{new_key} root.key",
        "req -new -x509 -key root.key -config settings -extensions root -days 30 -out root.pem",
        f"{new_key} key.pem",
        "req -new -key key.pem -subj /O=Nobody/CN=Jane -out signer.csr -config settings",
        "x509 -req -in signer.csr -CA root.pem -CAkey root.key -CAcreateserial -days 20 -extfile settings "
        "-extensions signer -out signer.pem",
    ):
        subprocess.run([OPENSSL, *command.split()], cwd=folder, check=True, capture_output=True)
    chain = folder / "chain.pem"
    chain.write_text((folder / "signer.pem").read_text() + (folder / "root.pem").read_text())
    return chain, folder / "key.pem"


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.mp4"])
def test_what_is_signed_is_known_and_what_is_changed_as_well(certificate, tmp_path, name):
    """Assert the signer's name, that pixels stay, and that one other byte of the content is told."""
    path, picture = tmp_path / name, Image.radial_gradient("L").convert("RGB")
    if name.endswith(("gif", "mp4")):
        save_marked_video([picture, picture.rotate(90)], path, 12)
    else:
        save_marked(picture, path)
    before = path.read_bytes()
    assert read_signature(path) is None
    open_certificate(*certificate)(path)
    assert path.read_bytes() != before
    assert read_signature(path) == Signature("Jane", is_intact=True)
    if name == "a.png":
        plain = tmp_path / "plain.png"
        plain.write_bytes(before)
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(plain)))
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    assert not read_signature(path).is_intact


def test_the_command_signs_and_verifies(certificate, tmp_path, capsys):
    """Assert that every picture of a call is signed, and that verify names the signer and a change, with its status."""
    tiny_pipeline().save_pretrained(tmp_path / "pipe")
    Image.radial_gradient("L").convert("RGB").save(tmp_path / "face.png")
    words = ["views", tmp_path / "face.png", "--aligned", "--num", 2, "--out", tmp_path / "out", "--steps", 1]
    words += ["--checkpoint", tmp_path / "pipe", "--device", "cpu"]
    chain, key = certificate
    assert cli.main([*map(str, words), "--certificate", str(chain), "--key", str(key)]) == 0
    pictures = sorted((tmp_path / "out").glob("*.png"))
    assert len(pictures) == 3
    capsys.readouterr()
    assert cli.main(["verify", *map(str, pictures)]) == 0
    assert capsys.readouterr().out.count("; signed by Jane\n") == 3
    picture = tmp_path / "view.jpg"
    save_marked(Image.radial_gradient("L").convert("RGB"), picture)
    open_certificate(*certificate)(picture)
    content = bytearray(picture.read_bytes())
    content[-20] ^= 1
    picture.write_bytes(content)
    assert cli.main(["verify", str(picture)]) == 1
    assert capsys.readouterr().out.endswith("; CHANGED since it was signed by Jane\n")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--certificate", "chain.pem"], "signing needs both --certificate and --key"),
        (["--key", "key.pem"], "signing needs both --certificate and --key"),
        (["--certificate", "none.pem", "--key", "key.pem"], "cannot read 'none.pem'"),
        (["--certificate", "key.pem", "--key", "key.pem"], "'key.pem' and 'key.pem' cannot sign"),
        (["--certificate", "text.pem", "--key", "text.pem"], "'text.pem' and 'text.pem' cannot sign"),
    ],
)
def test_what_cannot_sign_is_one_line(certificate, tmp_path, monkeypatch, capsys, words, expected):
    """Assert exit status 2 and one line before a model is loaded, and that nothing was written."""
    monkeypatch.chdir(tmp_path)
    for path, name in zip(certificate, ("chain.pem", "key.pem"), strict=True):
        shutil.copy(path, name)
    (tmp_path / "text.pem").write_text("no certificate")
    Image.new("RGB", (40, 40)).save("face.png")
    assert cli.main(["views", "face.png", "--out", "out", "--checkpoint", "none", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert not (tmp_path / "out").exists()


def test_without_the_library_one_line_says_what_to_install(tmp_path, monkeypatch):
    """Assert it for signing, and for a file that says that it is signed."""
    monkeypatch.setattr("nvb_diffusers.credentials.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"\[credentials\]"):
        open_certificate(tmp_path / "a", tmp_path / "b")
    (tmp_path / "a.png").write_bytes(b"....c2pa....")
    with pytest.raises(ValueError, match=r"a.png' is signed. .*\[credentials\]"):
        read_signature(tmp_path / "a.png")
