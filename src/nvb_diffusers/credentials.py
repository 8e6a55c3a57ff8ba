"""Content Credentials (C2PA): a signature says who made a picture, that it is synthetic, and whether it was changed.

The certificate is the user's own. Needs c2pa-python, the extra `[credentials]`.
"""

import io
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from nvb_diffusers.files import one_line, replaced_file
from nvb_diffusers.provenance import SOURCE_TYPE

HOW_TO_INSTALL = 'Content Credentials need c2pa-python: pip install -c constraints.txt ".[credentials]"'
ALGORITHMS = ("ES256", "PS256", "ED25519", "ES384", "PS384", "ES512", "PS512")  # of which a key fits one
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".mp4")
MANIFEST = {
    "claim_generator_info": [{"name": "nvb-face"}],
    "assertions": [
        {
            "label": "c2pa.actions",
            "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE}]},
        }
    ],
}
UNKNOWN_ISSUER = "signingCredential.untrusted"  # no list of trusted issuers is asked for, so that no network is needed

Sign = Callable[[Path], None]


class Signature(NamedTuple):
    """Who signed a file, and whether it is as it was then.

    Args:
        signer: as the certificate names it.
        is_intact: whether signature and content are as they were signed.
    """

    signer: str
    is_intact: bool


def open_certificate(certificate: Path, key: Path) -> Sign:
    """What signs a file, in its place.

    Args:
        certificate: PEM, the signer's and those up to its root; for documents or e-mail (extended key usage).
        key: PEM, in PKCS 8, of the signer's.

    Raises:
        ValueError: c2pa-python is missing, a file cannot be read, or they cannot sign.
    """
    if find_spec("c2pa") is None:
        raise ValueError(HOW_TO_INSTALL)
    import c2pa

    try:
        chain, secret = certificate.read_bytes(), key.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read '{error.filename}': {error.strerror}") from None
    blank = io.BytesIO()
    Image.new("RGB", (8, 8)).save(blank, format="PNG")
    reason = ""
    for name in ALGORITHMS:
        try:
            info = c2pa.C2paSignerInfo(
                alg=getattr(c2pa.C2paSigningAlg, name), sign_cert=chain, private_key=secret, ta_url=None
            )
            signer = c2pa.Signer.from_info(info)
            with c2pa.Builder(json.dumps(MANIFEST)) as builder:
                builder.sign(signer, "image/png", io.BytesIO(blank.getvalue()), io.BytesIO())
        except c2pa.C2paError as error:
            reason = reason or one_line(error)  # of the first, which most keys are for
            continue
        return lambda path: _sign(path, signer)
    raise ValueError(f"'{certificate}' and '{key}' cannot sign: {reason}")


def _sign(path: Path, signer: Any) -> None:
    """Sign a file in its place."""
    import c2pa

    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"'{path}' cannot be signed: {', '.join(SUFFIXES)} can")
    with replaced_file(path) as part, c2pa.Builder(json.dumps({**MANIFEST, "title": path.name})) as builder:
        builder.sign_file(str(path), str(part), signer)


def read_signature(path: Path) -> Signature | None:
    """The signature of a file; None where it has none.

    Raises:
        ValueError: it has Content Credentials, but c2pa-python is missing.
    """
    if path.suffix.lower() not in SUFFIXES or b"c2pa" not in path.read_bytes():
        return None
    if find_spec("c2pa") is None:
        raise ValueError(f"'{path}' is signed. {HOW_TO_INSTALL}")
    import c2pa

    try:
        with c2pa.Reader(str(path)) as reader:
            report = json.loads(reader.json())
    except c2pa.C2paError:  # what is left of its credentials cannot be read
        return Signature("somebody", is_intact=False)
    manifest = report["manifests"][report["active_manifest"]]
    info = manifest.get("signature_info", {})
    problems = {status["code"] for status in report.get("validation_status", ())} - {UNKNOWN_ISSUER}
    return Signature(str(info.get("common_name") or info.get("issuer") or "somebody"), is_intact=not problems)
