"""Certificates for a test: an authority, a RabbitMQ it vouches for, a client it vouches for, and strangers to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Certificates:
    """PEM files in a folder. The server's certificate is for the host 127.0.0.1 and no other, so not for localhost."""

    folder: Path

    @property
    def authority(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def other_authority(self) -> Path:
        return self.folder / "other-ca.pem"

    @property
    def server(self) -> tuple[Path, Path]:
        """The server's certificate and its key."""
        return self._pair("server")

    @property
    def client(self) -> tuple[Path, Path]:
        """A client's certificate and its key, signed by the authority."""
        return self._pair("client")

    @property
    def stranger(self) -> tuple[Path, Path]:
        """A client's certificate and its key, signed by the other authority."""
        return self._pair("stranger")

    def _pair(self, name: str) -> tuple[Path, Path]:
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"


def make(folder: Path) -> Certificates:
    """Make them all, in this folder."""
    made = Certificates(folder)
    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(made.authority)
    other.cert_pem.write_to_path(made.other_authority)
    for (certificate, key), signed in (
        (made.server, authority.issue_cert("127.0.0.1")),
        (made.client, authority.issue_cert("eva@example.com")),
        (made.stranger, other.issue_cert("eva@example.com")),
    ):
        signed.cert_chain_pems[0].write_to_path(certificate)
        signed.private_key_pem.write_to_path(key)
    return made
