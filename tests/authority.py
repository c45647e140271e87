"""
Certificates for tests, made by openssl.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path

CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class Authority:
    """Somebody who issues certificates, all into one folder.

    Attributes:
        certificate: what they are verified by.
    """

    folder: Path
    name: str = "authority"

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.openssl("req", "-x509", *CURVE, "-keyout", f"{self.name}.key", "-out", f"{self.name}.pem", "-days", "30", "-subj", f"/CN={self.name}")

    @property
    def certificate(self) -> Path:
        return self.folder / f"{self.name}.pem"

    def issue(self, name: str, *, days: int = 30, as_file: str | None = None) -> Pair:
        """A certificate of this machine's names; one of negative days has expired. It replaces what `as_file` named before."""
        file = as_file or name
        (self.folder / "extensions").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        self.openssl("req", *CURVE, "-keyout", "new.key", "-out", "new.csr", "-subj", f"/CN={name}")
        signed_by = ("-CA", f"{self.name}.pem", "-CAkey", f"{self.name}.key", "-CAcreateserial")
        self.openssl("x509", "-req", "-in", "new.csr", *signed_by, "-out", "new.pem", "-days", str(days), "-extfile", "extensions")
        pair = Pair(self.folder / f"{file}.pem", self.folder / f"{file}.key")
        (self.folder / "new.key").replace(pair.key)
        (self.folder / "new.pem").replace(pair.certificate)
        return pair

    def openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)
