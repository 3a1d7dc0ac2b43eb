"""SRV, A and AAAA look-ups by dnspython. "There is none" and "it cannot be known" are not the same."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from invite_client.policy import DnsPolicy
from invite_client.spec.srv import SrvRecord

if TYPE_CHECKING:
    import dns.asyncresolver
    import dns.resolver

__all__ = ["Dns", "DnsAbsentError", "DnsFailedError", "SrvRecords"]

Address: TypeAlias = IPv4Address | IPv6Address

_EDNS_PAYLOAD = 1232
"""Bytes of a UDP answer that pass every network unfragmented (DNS flag day 2020); a large SRV set
then needs no second question by TCP."""
_LOOPBACK: tuple[Address, ...] = (IPv4Address("127.0.0.1"), IPv6Address("::1"))
_HOSTS = Path("/etc/hosts")


class DnsAbsentError(OSError):
    """The name, or the kind of record, does not exist."""

    def __init__(self, message: str, ttl: float) -> None:
        super().__init__(message)
        self.ttl = ttl


class DnsFailedError(OSError):
    """No name server gave an answer: nothing is known."""


@dataclass(frozen=True, slots=True)
class SrvRecords:
    """What a zone says; no records at all if it says that there are none."""

    records: tuple[SrvRecord, ...]
    ttl: float
    """Seconds for which the answer may be kept."""


class Dns:
    """Asks the name servers of a `DnsPolicy`."""

    def __init__(self, policy: DnsPolicy, hosts: Path = _HOSTS) -> None:
        self._policy = policy
        self._hosts = hosts
        self._resolver: dns.asyncresolver.Resolver | None = None

    async def srv(self, service: str, hostname: str) -> SrvRecords:
        """Return the SRV records of ``service.hostname``. Raises `DnsFailedError`."""
        try:
            answer = await self._ask(f"{service}.{hostname}", "SRV")
        except DnsAbsentError as absent:
            return SrvRecords((), absent.ttl)
        records = tuple(
            SrvRecord(
                record.priority,
                record.weight,
                record.port,
                # A single dot stays: it says "not offered".
                record.target.to_text().removesuffix(".") or ".",
            )
            for record in answer
        )
        return SrvRecords(records, float(answer.chaining_result.minimum_ttl))

    async def addresses(self, hostname: str) -> list[Address]:
        """Return the addresses of a host: A and AAAA, asked side by side, each on its own.

        Raises `DnsAbsentError` if there are none, `DnsFailedError` if that cannot be known.
        """
        # dnspython asks name servers only; what stands in /etc/hosts, or is by definition this
        # machine (RFC 6761), they do not know.
        local = self._local(hostname)
        if local:
            return local
        answers = await asyncio.gather(
            self._ask(hostname, "AAAA"), self._ask(hostname, "A"), return_exceptions=True
        )
        found: list[Address] = []
        failures: list[BaseException] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                failures.append(answer)
            else:
                found += [ip_address(record.address) for record in answer]
        if found:
            return found
        raise next((e for e in failures if not isinstance(e, DnsAbsentError)), failures[0])

    def _local(self, hostname: str) -> list[Address]:
        name = hostname.lower().removesuffix(".")
        found = [address for names, address in self._read_hosts() if name in names]
        if not found and (name == "localhost" or name.endswith(".localhost")):
            return list(_LOOPBACK)
        return found

    def _read_hosts(self) -> list[tuple[set[str], Address]]:
        try:
            lines = self._hosts.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []
        entries = []
        for line in lines:
            match line.partition("#")[0].split():
                case [literal, *names] if names:
                    try:
                        entries.append(({n.lower() for n in names}, ip_address(literal)))
                    except ValueError:
                        continue
        return entries

    async def _ask(self, name: str, kind: str) -> Any:
        # Imported when first used: dnspython takes as long to import as aiohttp.
        import dns.exception  # noqa: PLC0415
        import dns.resolver  # noqa: PLC0415

        question = f"{kind} {name}"
        try:
            return await self._made_resolver().resolve(name, kind, search=False)
        except dns.resolver.NXDOMAIN as error:
            ttl = _negative_ttl(error.kwargs["responses"].values())
            raise DnsAbsentError(f"{question}: no such name", ttl) from None
        except dns.resolver.NoAnswer as error:
            ttl = _negative_ttl([error.kwargs["response"]])
            raise DnsAbsentError(f"{question}: no such record", ttl) from None
        except dns.exception.Timeout:
            raise DnsFailedError(
                f"{question}: no name server answered within {self._policy.timeout:g} s"
            ) from None
        except dns.resolver.NoNameservers as error:
            codes = {str(e[3]) for e in error.kwargs.get("errors", [])}
            why = ", ".join(sorted(codes)) or "no usable name server"
            raise DnsFailedError(f"{question}: {why}") from None
        # A label over 63 octets is a SyntaxError to dnspython.
        except (dns.exception.DNSException, SyntaxError, ValueError) as error:
            raise DnsFailedError(f"{question}: {type(error).__name__}") from None

    def _made_resolver(self) -> dns.asyncresolver.Resolver:
        if self._resolver is None:
            import dns.asyncresolver  # noqa: PLC0415

            # Without name servers of our own, those of the system; raises if there are none.
            own = bool(self._policy.nameservers)
            resolver = dns.asyncresolver.Resolver(configure=not own)
            if own:
                resolver.nameservers = list(self._policy.nameservers)
                resolver.port = self._policy.port
            resolver.lifetime = self._policy.timeout
            # A dead name server costs half the time, not all of it; and not always the same half.
            resolver.timeout = self._policy.timeout / 2
            resolver.rotate = True
            resolver.use_edns(0, 0, _EDNS_PAYLOAD)
            self._resolver = resolver
        return self._resolver


def _negative_ttl(responses: Iterable[Any]) -> float:
    """RFC 2308 § 5: the lesser of the SOA's TTL and its minimum field."""
    for response in responses:
        for rrset in response.authority:
            for record in rrset:
                if hasattr(record, "minimum"):
                    return float(min(rrset.ttl, record.minimum))
    return 0.0
