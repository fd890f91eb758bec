"""C2PA manifests that are signed here, by a certificate nobody trusts."""

import datetime
import io
import json
from importlib import import_module
from typing import Any

import pytest
from krea_data.classify import provenance
from krea_data.classify.provenance import c2pa_evidence
from PIL import Image

SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/"


def picture(form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (48, 32), "red").save(file, form)
    return file.getvalue()


@pytest.fixture(scope="module")
def signer() -> Any:
    c2pa = pytest.importorskip("c2pa")
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    day = datetime.timedelta(days=1)
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)

    def made(name: str, key: Any, issuer: Any = None, by: Any = None) -> Any:
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)] * 1)
        subject = x509.Name([*subject, x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Test")])
        root = by is None
        usage = {"digital_signature": not root, "key_cert_sign": root, "crl_sign": root, "content_commitment": False}
        usage |= {"key_encipherment": False, "data_encipherment": False, "key_agreement": False}
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if root else issuer.subject)
            .public_key(key.public_key())
            .serial_number(7 if root else 8)
            .not_valid_before(start)
            .not_valid_after(start + 20_000 * day)
            .add_extension(x509.BasicConstraints(ca=root, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(**usage, encipher_only=False, decipher_only=False), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        source = (key if root else by).public_key()
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(source), critical=False)
        if not root:
            purposes = [x509.ExtendedKeyUsageOID.EMAIL_PROTECTION]
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        return builder.sign(key if root else by, hashes.SHA256())

    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    root = made("Root", keys[0])
    leaf = made("Leaf", keys[1], root, keys[0])
    pem = serialization.Encoding.PEM
    chain = b"".join(one.public_bytes(pem) for one in (leaf, root))
    private = keys[1].private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return c2pa.Signer.from_info(c2pa.C2paSignerInfo("es256", chain, private, None))


def signed(signer: Any, kind: str | None, form: str = "PNG", parents: tuple[tuple[bytes, str], ...] = ()) -> bytes:
    """A picture whose manifest says that it was created so, or opened from its parents."""
    c2pa = import_module("c2pa")
    created = {"action": "c2pa.created", "digitalSourceType": SOURCE + (kind or "")}
    opened = {"action": "c2pa.opened", "parameters": {"ingredientIds": ["before"]}}
    actions = [created if kind else opened]
    about = {
        "claim_generator_info": [{"name": "Painter", "version": "1"}],
        "assertions": [{"label": "c2pa.actions", "data": {"actions": actions}}],
    }
    out = io.BytesIO()
    mime = f"image/{form.lower()}"
    with c2pa.Builder(json.dumps(about)) as builder:
        for data, relation in parents:
            told = json.dumps({"title": "before", "relationship": relation, "instance_id": "before"})
            builder.add_ingredient(told, "image/png", io.BytesIO(data))
        builder.sign(signer, mime, io.BytesIO(picture(form)), out)
    return out.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_generated_picture_is_found(signer: Any, form: str) -> None:
    found = c2pa_evidence(signed(signer, "trainedAlgorithmicMedia", form))
    assert found is not None
    assert (found.rule, found.answer) == ("c2pa", "yes")
    assert "Painter" in found.detail


def test_other_origins_are_no_evidence(signer: Any) -> None:
    assert c2pa_evidence(signed(signer, "digitalCapture")) is None
    partly = c2pa_evidence(signed(signer, "compositeWithTrainedAlgorithmicMedia"))
    assert partly is not None
    assert partly.answer == "unsure"


def test_an_edited_picture_is_what_it_was_and_a_pasted_part_is_not_the_whole(signer: Any) -> None:
    before = signed(signer, "trainedAlgorithmicMedia")
    edited = c2pa_evidence(signed(signer, None, parents=((before, "parentOf"),)))
    assert edited is not None
    assert edited.answer == "yes"
    pasted = c2pa_evidence(signed(signer, "composite", parents=((before, "componentOf"),)))
    assert pasted is not None
    assert pasted.answer == "unsure"


def test_pixels_changed_after_signing_are_told(signer: Any) -> None:
    data = bytearray(signed(signer, "trainedAlgorithmicMedia", "JPEG"))
    data[-6] ^= 1
    found = c2pa_evidence(bytes(data))
    assert found is not None
    assert found.answer == "yes"
    assert "Invalid" in found.detail


def test_without_the_package_a_mention_is_not_enough(signer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "find_spec", lambda name: None)
    found = c2pa_evidence(signed(signer, "trainedAlgorithmicMedia"))
    assert found is not None
    assert found.answer == "unsure"
    assert "trainedAlgorithmicMedia" in found.detail
    assert c2pa_evidence(signed(signer, "digitalCapture")) is None


@pytest.mark.parametrize("data", [b"", b"jumb c2pa", picture(), picture() + b"jumb c2pa"])
def test_files_without_a_manifest_have_no_evidence(data: bytes) -> None:
    assert c2pa_evidence(data) is None
