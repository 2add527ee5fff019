"""Certificates for a cluster on one machine, made by openssl: one for each node, signed by an authority of its own."""

import ipaddress
import shutil
import subprocess
from pathlib import Path

_DAYS = "30"


class Authority:
    """The certificate authority of one cluster. All keys are in one folder, readable by its owner only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certificate, self._key = folder / "ca.crt", folder / "ca.key"

    def issue(self, name: str, addresses: list[str]) -> tuple[Path, Path]:
        """Returns the paths of a certificate for IP addresses and of its key; makes the authority if there is none.

        Raises RuntimeError if openssl is missing or refuses.
        """
        if not self.certificate.exists():
            self.folder.mkdir(mode=0o700, exist_ok=True)
            self._make("ray", self.certificate, self._key, ["-addext", "keyUsage=critical,keyCertSign"])
        certificate, key = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        names = ",".join(f"IP:{ipaddress.ip_address(each)}" for each in dict.fromkeys(addresses))
        signed = ["-CA", str(self.certificate), "-CAkey", str(self._key)]
        of_node = [f"subjectAltName={names}", "basicConstraints=critical,CA:FALSE"]
        of_node.append("extendedKeyUsage=serverAuth,clientAuth")
        self._make(name, certificate, key, [*signed, *(word for each in of_node for word in ("-addext", each))])
        return certificate, key

    def _make(self, name: str, certificate: Path, key: Path, more: list[str]) -> None:
        if shutil.which("openssl") is None:
            raise RuntimeError("tls needs openssl; Debian: apt-get install openssl")
        line = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        line += ["-days", _DAYS, "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(certificate), *more]
        done = subprocess.run(line, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"openssl: {done.stderr.strip()[-300:]}")
