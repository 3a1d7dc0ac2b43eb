"""What an examination means: what is wrong, how bad that is, and what to do. Nothing is asked here."""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from invite_client.backoff import BackOff
from invite_client.cli.doctor.examination import Address, Answer, Examination, Keys
from invite_client.cli.output import counted, utc
from invite_client.errors import (
    ForbiddenByPolicyError,
    InviteError,
    MalformedReplyError,
    Stage,
    UnreachableError,
)
from invite_client.net.addresses import AddressRefusedError
from invite_client.spec.discovery import ResolvedServer
from invite_client.spec.http import Reply
from invite_client.spec.server_keys import PublishedKey
from invite_client.spec.signatures import SigningKey

__all__ = [
    "CLOCK_TOLERANCE",
    "Finding",
    "Problem",
    "apart",
    "diagnose",
    "exists",
    "exit_code",
    "speaks",
]

CLOCK_TOLERANCE = 60.0
"""Seconds that two clocks may differ before it is worth a word: events and keys have times."""
_SLOW = 3.0
"""Seconds that a well-known file may take: every server that asks for it waits as long."""
_SOON = 7 * 24 * 3600.0
"""Seconds before its end at which a certificate should have been renewed: those of 90 days are
renewed 30 days before."""
_UNITS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"))
_GATEWAY = (502, 503, 504)
"""What a reverse proxy says for a homeserver that does not answer it."""
_SHOWN_NAMES = 3
"""Names of a wrong certificate that are told."""


class Problem(enum.StrEnum):
    """What can be wrong, for machines."""

    POLICY = "refused by our policy"
    BACKED_OFF = "backed off"
    DNS_FAILED = "DNS failed"
    NOT_OFFERED = "federation not offered"
    NO_ADDRESS = "no address"
    WELL_KNOWN = "well-known not valid"
    WELL_KNOWN_CERTIFICATE = "well-known certificate"
    WELL_KNOWN_SLOW = "well-known slow"
    ADDRESS_REFUSED = "address refused by our policy"
    PROXY = "proxy"
    REFUSED = "connection refused"
    TIMED_OUT = "connection timed out"
    NOT_REACHED = "not reached"
    NO_TLS = "no TLS"
    CERTIFICATE_EXPIRED = "certificate expired"
    CERTIFICATE_EARLY = "certificate not yet valid"
    CERTIFICATE_NAME = "certificate for another name"
    CERTIFICATE_UNTRUSTED = "certificate not trusted"
    CERTIFICATE = "certificate refused"
    CERTIFICATE_SOON = "certificate ends soon"
    NOT_CHECKED = "certificate not checked"
    NO_ANSWER = "no answer"
    GATEWAY = "homeserver behind its proxy down"
    NOT_A_HOMESERVER = "not a homeserver"
    LIMITED = "limited"
    KEYS_UNAVAILABLE = "keys unavailable"
    KEYS_OF_ANOTHER = "keys of another server"
    KEYS_NOT_VALID = "keys not valid"
    KEYS_EXPIRED = "keys expired"
    CLOCK = "clocks differ"
    NO_V2 = "no v2 endpoint"
    INVITES_UNANSWERED = "no answer to invites"
    SIGNATURE_REFUSED = "our signature refused"
    OUR_KEY = "our key not published"
    OURS = "our server not found"
    UNFINISHED = "not finished"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    problem: Problem
    what: str
    """What is wrong: a sentence without its full stop."""
    fix: str
    """The one thing to do about it, as a sentence."""
    fatal: bool = True
    """Whether invites cannot be sent, or not be believed, because of it."""
    may_pass: bool = False
    """Whether it may go away by itself."""


def diagnose(
    theirs: Examination,
    ours: Examination | None = None,
    key: SigningKey | None = None,
    backoff: BackOff | None = None,
) -> list[Finding]:
    """Return what is wrong, the worst first: what keeps invites away, in the order of an invite."""
    found = [
        *_of_server(theirs),
        *_of_us(theirs, ours, key),
        *_of_backoff(backoff, theirs.now),
    ]
    if not theirs.finished:
        found.append(
            Finding(
                Problem.UNFINISHED,
                f"not everything about {theirs.server_name} was answered in time",
                "Look at what took long above; --timeout gives it more time.",
                fatal=theirs.keys is None or theirs.keys.keys is None,
                may_pass=True,
            )
        )
    return sorted(found, key=lambda finding: not finding.fatal)


# --- A server, theirs or ours ---------------------------------------------------------------------


def _of_server(exam: Examination) -> Iterator[Finding]:
    if exam.error is not None:
        yield _of_discovery(exam, exam.error)
        return
    if exam.server is None:
        return
    well_known = list(_of_well_known(exam, exam.server))
    speaking = _speaking(exam)
    if not speaking:
        # It may be why the server was looked for in the wrong place.
        yield from well_known
    yield from _of_addresses(exam, exam.server)
    if exam.keys is not None:
        yield from _of_keys(exam, exam.keys)
    if speaking:
        yield from _of_endpoints(exam)
        for finding in well_known:
            yield replace(finding, fatal=False)


def _of_discovery(exam: Examination, error: InviteError) -> Finding:
    name = exam.server_name
    match error:
        case ForbiddenByPolicyError(setting=setting):
            return Finding(
                Problem.POLICY,
                error.message,
                f"If {name} may be invited from, change {setting}.",
            )
        case UnreachableError(stage=Stage.DNS, retryable=True):
            return Finding(
                Problem.DNS_FAILED,
                f"{error.message}: nobody knows whether there is such a record",
                f"Try again; if it stays so, the operator of {name} must have the name servers of "
                "its domain mended. If other names fail too, look at yours (--nameserver).",
                may_pass=True,
            )
        case UnreachableError(stage=Stage.DNS):
            return Finding(
                Problem.NOT_OFFERED,
                error.message,
                f"The operator of {name} must change that SRV record, whose target is a dot, or "
                "remove it.",
            )
    return Finding(
        Problem.UNFINISHED,
        error.message,
        "Look at the step that took long above; --timeout gives it more time.",
        may_pass=error.retryable,
    )


def _of_well_known(exam: Examination, server: ResolvedServer) -> Iterator[Finding]:
    step = next((step for step in server.trace if step.step == "3"), None)
    if step is None:
        return
    operator = _operator(exam)
    if step.seconds > _SLOW:
        yield Finding(
            Problem.WELL_KNOWN_SLOW,
            f"{step.question} took {step.seconds:.0f} s",
            f"{operator} let port 443 of {server.server_name} answer, or refuse connections at "
            "once: who asks for the file waits.",
            fatal=False,
        )
    if server.step.startswith("3") or exam.web is None:
        return
    if exam.web.version is None:
        if exam.web.chain:
            yield Finding(
                Problem.WELL_KNOWN_CERTIFICATE,
                f"{step.question} counts for nothing, for its certificate is not valid: "
                f"{step.answer}",
                f"{operator} give the web server a valid certificate, or publish no well-known file.",
            )
    elif step.answer not in ("status 404", "status 410"):
        yield Finding(
            Problem.WELL_KNOWN,
            f"{step.question} is no valid delegation: {step.answer}",
            f"{operator} let it answer 200 with"
            ' {"m.server": "<host>:<port>"}, or 404 if there is none.',
        )


def _of_addresses(exam: Examination, server: ResolvedServer) -> Iterator[Finding]:
    by_target = [
        [address for address in exam.addresses if address.target == target]
        for target in server.targets
    ]
    # Targets are tried in order until one is connected to; its answer counts, whatever it is.
    used = next((group for group in by_target if any(a.connected for a in group)), [])
    found: dict[Finding, list[str]] = {}
    for address in (address for group in by_target for address in group):
        finding = _of_address(exam, server, address)
        if finding is not None:
            # An address that cannot be connected to is made up for by one that can.
            matters = address in used if address.connected else not used
            finding = replace(finding, fatal=finding.fatal and matters)
            found.setdefault(finding, []).append(address.address or str(address.target))
    for finding, places in found.items():
        where = ", ".join(dict.fromkeys(places))
        yield replace(finding, what=f"{where}: {finding.what}")
    yield from _of_certificates(exam, used)


def speaks(answer: Answer) -> bool:
    """Whether this is what a homeserver says; one that does not tell its version has a Matrix error."""
    reply = answer.reply
    return reply is not None and (
        (reply.status == 200 and bool(answer.body)) or answer.errcode is not None
    )


def _speaking(exam: Examination) -> bool:
    return any(speaks(address.answer) for address in exam.addresses)


def _of_address(exam: Examination, server: ResolvedServer, address: Address) -> Finding | None:
    if address.answer.error is not None:
        return _of_error(exam, server, address, address.answer.error)
    return None if speaks(address.answer) else _of_reply(exam, address.answer)


def _operator(exam: Examination) -> str:
    return f"The operator of {exam.server_name} must"


def _or_elsewhere(exam: Examination, server: ResolvedServer) -> str:
    """What else may be wrong with a place where nothing is: that it was said to be there."""
    file = f"https://{exam.server_name}/.well-known/matrix/server"
    match server.step:
        case "1" | "2":
            return ""  # the server name itself says where
        case "3.1" | "3.2" | "3.5":
            return f", or correct `m.server` in {file}"
        case "6":
            return f", or publish in {file} where it is"
    return f", or correct the SRV record of {server.tls_name}"


def _of_error(
    exam: Examination, server: ResolvedServer, address: Address, error: InviteError
) -> Finding:
    target = address.target
    words = words_of(address, error)
    elsewhere = _or_elsewhere(exam, server)
    if isinstance(error, ForbiddenByPolicyError):
        return Finding(
            Problem.ADDRESS_REFUSED,
            words,
            f"If that address is yours, permit its network with --allow-address; if not, the "
            f"operator of {exam.server_name} must publish one that all can reach.",
        )
    if "the proxy " in words:
        return Finding(
            Problem.PROXY,
            words,
            "Look at your proxy (--proxy, https_proxy), and at what it permits.",
            may_pass=error.retryable,
        )
    if isinstance(error, MalformedReplyError):
        return Finding(
            Problem.NOT_A_HOMESERVER,
            f"what answers is no homeserver: {words}",
            f"{_operator(exam)} let the homeserver answer, and see what stands before it.",
        )
    match error.stage:
        case Stage.DNS if not error.retryable and server.step == "6":
            return Finding(
                Problem.NO_ADDRESS,
                f"{target.host} has no address ({words}), and nothing says where else it is",
                f"Check the spelling of {exam.server_name}. If it is right, its operator must give "
                f"{target.host} an A or AAAA record{elsewhere}. If other names fail too, look at "
                "your name servers (--nameserver).",
            )
        case Stage.DNS if not error.retryable:
            return Finding(
                Problem.NO_ADDRESS,
                f"{target.host} has no address ({words})",
                f"{_operator(exam)} give {target.host} an A or AAAA record{elsewhere}.",
            )
        case Stage.DNS:
            return Finding(
                Problem.DNS_FAILED,
                words,
                f"Try again; if it stays so, the name servers of {target.host} must be mended. If "
                "other names fail too, look at yours (--nameserver).",
                may_pass=True,
            )
        case Stage.CONNECT:
            return _of_connect(words, _operator(exam), elsewhere, target.port)
        case Stage.TLS:
            return _of_tls(exam, server, address, words)
    return Finding(
        Problem.NO_ANSWER,
        f"it takes requests and gives no answer ({words})",
        f"{_operator(exam)} look at the homeserver, and at the reverse proxy before it.",
        may_pass=error.retryable,
    )


def words_of(address: Address, error: InviteError) -> str:
    """Return what is wrong with an address, without saying again which one it is."""
    if isinstance(error.__cause__, AddressRefusedError):
        return f"refused: it is in {error.__cause__.network}, {error.__cause__.reason}"
    return error.message.removeprefix(f"{address.address}: ").removeprefix("TLS failed: ")


def _of_connect(words: str, operator: str, elsewhere: str, port: int) -> Finding:
    if os.strerror(errno.ECONNREFUSED) in words:
        return Finding(
            Problem.REFUSED,
            "nobody listens (connection refused)",
            f"{operator} start the homeserver, or the reverse proxy before it{elsewhere}.",
            may_pass=True,
        )
    if "no connection within" in words or os.strerror(errno.ETIMEDOUT) in words:
        return Finding(
            Problem.TIMED_OUT,
            f"nothing comes back ({words})",
            f"{operator} open port {port} in the firewall{elsewhere}. Look at your own firewall, too.",
            may_pass=True,
        )
    if os.strerror(errno.ENETUNREACH) in words:
        return Finding(
            Problem.NOT_REACHED,
            f"there is no way there from this machine ({words})",
            "Look at the routes of this machine: it may have no IPv6, or no IPv4.",
            may_pass=True,
        )
    return Finding(
        Problem.NOT_REACHED, words, f"{operator} make it reachable{elsewhere}.", may_pass=True
    )


def _of_tls(exam: Examination, server: ResolvedServer, address: Address, words: str) -> Finding:
    name = server.tls_name
    chain = address.handshake.chain if address.handshake else ()
    if address.handshake is None or address.handshake.problem is None or not chain:
        return Finding(
            Problem.NO_TLS,
            f"it takes connections and does not speak TLS with us ({words})",
            f"{_operator(exam)} let port {address.target.port} speak TLS 1.2 or later.",
            may_pass="no connection within" in words,
        )
    leaf = chain[0]
    install = f"{_operator(exam)} install a certificate for {name}"
    match address.handshake.problem:
        case 10 if leaf.not_after is not None and leaf.not_after < exam.now:
            return Finding(
                Problem.CERTIFICATE_EXPIRED,
                f"the certificate expired on {_date(leaf.not_after)}",
                f"{_operator(exam)} renew the certificate for {name}, and reload the server.",
            )
        case 9 if leaf.not_before is not None and leaf.not_before > exam.now:
            return Finding(
                Problem.CERTIFICATE_EARLY,
                f"the certificate is not valid before {_date(leaf.not_before)}; here it is "
                f"{_date(exam.now)}",
                "Look at the clock of this machine. If it is right, the certificate is not.",
            )
        case 62 | 64:
            for_whom = ", ".join(leaf.names[:_SHOWN_NAMES]) or "no name"
            return Finding(
                Problem.CERTIFICATE_NAME,
                f"the certificate is for {for_whom}, not for {name}",
                f"{install}: the name that counts is {_whose_name(server)}.",
            )
        case 18 | 19:
            return Finding(
                Problem.CERTIFICATE_UNTRUSTED,
                f"the certificate for {name} is self-signed",
                f"{install} by an authority that all trust. If the authority is yours, name it "
                "with --ca-file.",
            )
        case 2 | 20 | 21:
            alone = ", and no intermediate certificate came with it" if len(chain) == 1 else ""
            return Finding(
                Problem.CERTIFICATE_UNTRUSTED,
                f'nobody who is trusted vouches for "{leaf.issuer}", who issued the '
                f"certificate{alone}",
                f"{install} by an authority that all trust, with all intermediate certificates "
                "(fullchain.pem). If the authority is yours, name it with --ca-file.",
            )
    return Finding(Problem.CERTIFICATE, words, f"{install} that is valid.")


def _whose_name(server: ResolvedServer) -> str:
    if server.step.startswith("3"):
        return "the one in `m.server`"
    return "the server name, wherever SRV leads" if server.step in ("4", "5") else "the server name"


def _of_reply(exam: Examination, answer: Answer) -> Finding | None:
    reply = answer.reply
    assert reply is not None  # noqa: S101  # else there is an error
    proxy = f"{_operator(exam)} let the web server pass on /_matrix/federation and /_matrix/key"
    if reply.status in _GATEWAY:
        return Finding(
            Problem.GATEWAY,
            f"a web server answers, and the homeserver behind it does not (status {reply.status})",
            f"{_operator(exam)} start the homeserver.",
            may_pass=True,
        )
    if reply.status == 429:
        return Finding(
            Problem.LIMITED,
            "it limits requests (status 429)",
            "Wait, and try again.",
            fatal=False,
            may_pass=True,
        )
    if 300 <= reply.status < 400:
        return Finding(
            Problem.NOT_A_HOMESERVER,
            f"it redirects, which no federation request follows (status {reply.status})",
            f"{proxy}, and not redirect them.",
        )
    return Finding(
        Problem.NOT_A_HOMESERVER,
        f"what answers is no homeserver (status {reply.status}, no JSON of Matrix)",
        f"{proxy} to the homeserver.",
        may_pass=reply.status >= 500,
    )


def _of_certificates(exam: Examination, addresses: list[Address]) -> Iterator[Finding]:
    handshakes = [address.handshake for address in addresses if address.handshake]
    ends = [h.chain[0].not_after for h in handshakes if h.version and h.checked and h.chain]
    soonest = min((end for end in ends if end is not None), default=None)
    if soonest is not None and soonest - exam.now < _SOON:
        yield Finding(
            Problem.CERTIFICATE_SOON,
            f"the certificate ends on {_date(soonest)}",
            f"{_operator(exam)} see to it that it is renewed.",
            fatal=False,
        )
    if any(h.version and not h.checked for h in handshakes):
        yield Finding(
            Problem.NOT_CHECKED,
            "the certificate is not checked (tls.unverified): anybody may be answering",
            f"Take {exam.server_name} off that list as soon as its certificate is valid.",
            fatal=False,
        )


# --- Keys, endpoints, time ----------------------------------------------------------------------


def _of_keys(exam: Examination, keys: Keys) -> Iterator[Finding]:
    published = keys.answer.body.get("server_name")
    if keys.keys is None:
        error = keys.error
        assert error is not None  # noqa: S101  # it is the one or the other
        if isinstance(published, str) and published != exam.server_name:
            yield Finding(
                Problem.KEYS_OF_ANOTHER,
                f"it says that it is {published!r:.100}",
                f"{_operator(exam)} set server_name in the homeserver's configuration to "
                f"{exam.server_name}, or let requests for that host reach the right homeserver.",
            )
        elif not _speaking(exam):
            pass  # what is no homeserver has no keys: that is not one thing more to mend
        elif keys.answer.reply is not None and keys.answer.reply.status == 200:
            yield Finding(
                Problem.KEYS_NOT_VALID,
                error.message,
                f"{_operator(exam)} have the homeserver publish keys that it has signed: restart it, "
                "and see that nothing between changes /_matrix/key/v2/server.",
            )
        else:
            todo = f"{_operator(exam)} let the web server pass on /_matrix/key, as it passes on "
            yield Finding(
                Problem.KEYS_UNAVAILABLE,
                error.message,
                "Wait, and try again." if error.retryable else f"{todo}/_matrix/federation.",
                may_pass=error.retryable,
            )
        yield from _of_clock(exam, fatal=False)
        return
    until = int(str(keys.keys.response["valid_until_ts"])) / 1000
    expired = until <= exam.now
    if expired and exam.clock is not None and until > exam.now + exam.clock:
        yield from _of_clock(exam, fatal=True)
        return
    if expired:
        yield Finding(
            Problem.KEYS_EXPIRED,
            f"its keys were valid until {_date(until)}",
            f"{_operator(exam)} restart the homeserver, so that it publishes its keys anew, and see "
            "that no cache stands before /_matrix/key/v2/server.",
        )
    yield from _of_clock(exam, fatal=False)


def _of_clock(exam: Examination, *, fatal: bool) -> Iterator[Finding]:
    if exam.clock is None or abs(exam.clock) <= CLOCK_TOLERANCE:
        return
    yield Finding(
        Problem.CLOCK,
        f"the clock of {exam.server_name} is {apart(exam.clock)} ours"
        + (": by ours, its keys have expired" if fatal else ""),
        "Find out whose clock is wrong (compare with a time server), and let NTP set it.",
        fatal,
    )


def _of_endpoints(exam: Examination) -> Iterator[Finding]:
    answer = exam.endpoints.get("v2")
    if answer is not None and exists(answer) is False:
        yield Finding(
            Problem.NO_V2,
            "there is no v2 endpoint for invites, without which only rooms of version 1 and 2 can "
            "be invited to",
            f"{_operator(exam)} upgrade the homeserver, or let the web server pass on all of "
            "/_matrix/federation.",
        )
    # An invite is only sent to v1 where v2 says that it is not there.
    silence = _silence(answer) if answer is not None else None
    if silence is not None:
        yield Finding(
            Problem.INVITES_UNANSWERED,
            f"it does not answer requests for invites ({silence})",
            f"{_operator(exam)} look at the homeserver, which may be overloaded, and at what the "
            "reverse proxy before it does with PUT requests.",
            may_pass=True,
        )


def _silence(answer: Answer) -> str | None:
    """What there is instead of an answer, if the homeserver gave none."""
    if answer.reply is None:
        return answer.error.message if answer.error else "nothing came back"
    return f"status {answer.reply.status}" if answer.reply.status in _GATEWAY else None


def exists(answer: Answer) -> bool | None:
    """Whether an endpoint is there, by what an empty request to it came to; None if unclear."""
    if answer.reply is None:
        return None
    match answer.reply.status, answer.errcode:
        case (404 | 405 | 501, _) | (_, "M_UNRECOGNIZED"):
            return False
        case (400 | 401 | 403 | 429, str()):
            return True
        case (401, None) if _asks_for_a_signature(answer, answer.reply):
            # § Unsupported endpoints: one that is not there is a 404, whoever asks.
            return True
    return None


def _asks_for_a_signature(answer: Answer, reply: Reply) -> bool:
    """Whether a 401 may be a homeserver's: a proxy's asks for a password, or has a page for people."""
    scheme = reply.headers.get("www-authenticate", "X-Matrix").partition(" ")[0]
    return scheme.lower() == "x-matrix" and (not reply.body or answer.content is not None)


# --- Ourselves ----------------------------------------------------------------------------------


def _of_us(
    theirs: Examination, ours: Examination | None, key: SigningKey | None
) -> Iterator[Finding]:
    if ours is None:
        return
    seen = None
    if ours.keys is not None and ours.keys.keys is not None:
        seen = _of_our_keys(ours, ours.keys, ours.keys.keys.keys, key)
    else:
        for problem in [*_of_server(ours)][:1]:
            seen = Finding(
                Problem.OURS,
                f"{ours.server_name} cannot be seen from here: {problem.what}",
                f"See whether others can reach {ours.server_name}: they fetch its keys to check our "
                f"signatures. If they cannot: {problem.fix}",
                fatal=False,
                may_pass=problem.may_pass,
            )
    accepted = None if theirs.signed is None else accepts(theirs.signed)
    if seen is not None:
        # What the remote makes of our signature counts for more than what is seen from here.
        yield replace(seen, fatal=seen.fatal if accepted is None else not accepted)
    if accepted is False:
        body = theirs.signed.body if theirs.signed else {}
        words = body.get("error")
        yield Finding(
            Problem.SIGNATURE_REFUSED,
            f"{theirs.server_name} does not accept our signature (401"
            + (f": {words!r:.200})" if isinstance(words, str) else ")"),
            f"See that {theirs.server_name} can fetch the keys of {ours.server_name} from the "
            "internet, that they hold the signing key, and that the clocks are right.",
        )


def accepts(answer: Answer) -> bool | None:
    """Whether a server believes our signature, by what a signed request came to; None if unclear."""
    match (answer.reply.status if answer.reply else 0), answer.errcode:
        case 401, _:
            return False
        case (200, _) | (404, "M_NOT_FOUND"):
            return True
    return None


def _of_our_keys(
    ours: Examination, keys: Keys, published: Mapping[str, PublishedKey], key: SigningKey | None
) -> Finding | None:
    known = published.get(key.key_id) if key is not None else None
    if key is None or (known and known.key == key.verify_key and not known.old):
        return next(iter(_of_keys(ours, keys)), None)
    current = ", ".join(key_id for key_id, one in published.items() if not one.old) or "no key"
    why = f"it publishes {current}, and we sign with {key.key_id}"
    if known is not None:
        kind = "an old key" if known.key == key.verify_key else "another key"
        why = f"it publishes {kind} as {key.key_id}"
    return Finding(
        Problem.OUR_KEY,
        f"our signing key is not the one of {ours.server_name}: {why}",
        "Give the key that the homeserver signs with (--signing-key; Synapse: signing_key_path).",
    )


def _of_backoff(backoff: BackOff | None, now: float) -> Iterator[Finding]:
    if backoff is not None and backoff.until > now:
        yield Finding(
            Problem.BACKED_OFF,
            f"{counted(backoff.failures, 'failure')} in a row; invites are refused until "
            f"{_date(backoff.until)}",
            f"When the rest is right: invite-client backoff reset {backoff.destination}",
            may_pass=True,
        )


def exit_code(findings: list[Finding]) -> int:
    """0 if invites should arrive, 3 if all that keeps them away may pass, else 1."""
    fatal = [finding for finding in findings if finding.fatal]
    if not fatal:
        return 0
    return 3 if all(finding.may_pass for finding in fatal) else 1


def _date(seconds: float) -> str:
    return utc(int(seconds * 1000))


def apart(seconds: float) -> str:
    """Return by how much a clock is ahead of another, or behind it."""
    size, name = next(
        ((size, name) for size, name in _UNITS if abs(seconds) >= 2 * size), (1.0, "seconds")
    )
    if abs(seconds) < 1.0:
        return "less than a second apart from"
    return f"{abs(seconds) / size:.0f} {name} {'ahead of' if seconds > 0 else 'behind'}"
