"""The client: one invite at a time, from the event to the verified countersignature.

A newcomer starts reading at `InviteClient.send_invite`.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from typing import Any, Literal, ParamSpec

from invite_client.backoff import BackOff, BackOffMemory
from invite_client.bulk import Invites, Outcomes, send_all
from invite_client.errors import (
    Attempt,
    InvalidInviteError,
    InviteError,
    InviteRejectedError,
    MalformedReplyError,
    UnreachableError,
)
from invite_client.federation import FederationClient
from invite_client.interfaces import Clock, KeyRing, Observer, Resolver, Store, Transport
from invite_client.observations import (
    Abandoned,
    Failed,
    FellBack,
    KeysObtained,
    Observation,
    Queued,
    Replied,
    RequestSent,
    Resolved,
    RetryScheduled,
    Started,
    Unanswered,
    Verified,
)
from invite_client.policy import Policy
from invite_client.resolver import about_to_send
from invite_client.retrying import furthest, with_retries
from invite_client.sending import Sending, keys_unavailable
from invite_client.slots import Slots
from invite_client.spec import countersignature
from invite_client.spec.discovery import ResolvedServer
from invite_client.spec.http import Reply
from invite_client.spec.invites import (
    V1,
    V2,
    Endpoint,
    Event,
    Invite,
    SignedInvite,
    falls_back_to_v1,
    more_telling,
    rejection,
)
from invite_client.spec.server_keys import ServerKeys
from invite_client.spec.server_names import ServerName, parse_server_name
from invite_client.spec.signatures import SigningKey

__all__ = ["InviteClient"]

P = ParamSpec("P")

_log = logging.getLogger(__name__)

_LONGEST_SPELLING = 6
"""Bytes that one byte of JSON has at most where it is spelled otherwise: ``<`` as ``\\u003c``."""


class InviteClient(FederationClient):
    """Sends invites to other homeservers and returns them countersigned and verified.

        async with InviteClient("inviter.example", key) as client:
            signed = await client.send_invite(invite)

    One client serves a whole process: it keeps connections, resolved servers and keys. It belongs
    to the event loop in which it is entered. What it makes it closes; what it is given (`transport`,
    `resolver`, `keyring`, `store`) stays open.
    """

    def __init__(
        self,
        server_name: str,
        signing_key: SigningKey,
        *,
        policy: Policy | None = None,
        transport: Transport | None = None,
        resolver: Resolver | None = None,
        keyring: KeyRing | None = None,
        store: Store | None = None,
        clock: Clock | None = None,
        observer: Observer | None = None,
    ) -> None:
        """Prepare a client for our server `server_name`, which signs with `signing_key`.

        Opens nothing. Raises `InvalidInviteError` if the server name is not in the grammar.
        """
        self.server_name: str = str(parse_server_name(server_name))
        super().__init__(
            policy=policy,
            transport=transport,
            resolver=resolver,
            keyring=keyring,
            store=store,
            clock=clock,
        )
        self._key = signing_key
        self._observer = observer
        self._slots = Slots(self.policy.limits)
        self._backoffs = BackOffMemory(self._store, self.policy.backoff, self._clock)

    async def send_invite(self, invite: Invite, *, ignore_backoff: bool = False) -> SignedInvite:
        """Have the invited user's server sign the invite, and verify that it did.

        Returns within `policy.timeouts.total` seconds from when a slot is free. Raises
        `InviteError`; sending the same invite again is always safe. Server-Server API § Inviting
        to a room.

        A destination that has failed several times in a row is left alone for a while
        (`policy.backoff`), and the invite is refused at once, unless `ignore_backoff` says so.
        """
        sending = Sending(self._clock)
        self._observe(Queued, invite, call=sending.call)
        try:
            self._check_usable()
            self._check_origin(invite)
            self._check_server_policy(invite.destination)
            async with self._slots.take(str(invite.destination)):
                signed = await self._send(invite, sending, ignore_backoff)
        except InviteError as error:
            error.destination = error.destination or str(invite.destination)
            error.attempts = tuple(sending.log)
            self._observe(Failed, invite, error, sending.seconds, call=sending.call)
            raise
        except BaseException:
            self._observe(Abandoned, invite, sending.seconds, call=sending.call)
            raise
        self._observe(Verified, invite, signed, call=sending.call)
        return signed

    def send_invites(self, invites: Invites) -> AbstractAsyncContextManager[Outcomes]:
        """Send many invites, each with its own outcome; see `invite_client.bulk`.

            async with client.send_invites(invites) as outcomes:
                async for outcome in outcomes: ...

        Leaving the block ends what is under way. Raises nothing but what `invites` raises.
        """
        # The run sends again by itself, and knows better when: it sees the whole destination.
        once = copy.copy(self)
        policy = self.policy
        once.policy = replace(
            policy,
            retries=replace(policy.retries, attempts=1),
            # In a run it is the work in vain that is felt, not the round trips of one invite.
            limits=replace(policy.limits, connections_ahead=0),
        )
        send = partial(once.send_invite, ignore_backoff=True)
        return send_all(invites, send, policy.limits, policy.bulk, self._clock)

    async def backoff(self, server_name: str) -> BackOff | None:
        """Return why, and until when, invites to a server are refused; None if they are sent.

        Raises `InvalidInviteError` for a name outside the grammar.
        """
        return await self._backoffs.read(str(parse_server_name(server_name)))

    async def reset_backoff(self, server_name: str) -> None:
        """Forget that invites to a server have failed: the next one is sent.

        Raises `InvalidInviteError` for a name outside the grammar.
        """
        await self._backoffs.reset(str(parse_server_name(server_name)))

    # --- One invite, in its slot ----------------------------------------------------------------

    async def _send(self, invite: Invite, sending: Sending, ignore_backoff: bool) -> SignedInvite:
        async with self._backoffs.watch(str(invite.destination)) as watch:
            waited = sending.seconds
            sending.start(self.policy.timeouts.total)
            self._observe(Started, invite, waited, call=sending.call)
            async with self._time.within(sending.out_of_time):
                if not ignore_backoff:
                    await watch.admit()
                # § Retrieving server keys: they travel beside the request, unless many are under way.
                with about_to_send(self._is_quiet):
                    async with self._keys_beside(invite.destination):
                        # § Resolving server names, § Inviting to a room
                        endpoint, returned, server = await self._with_retries(invite, sending)
                        sending.answered = True
                        # § Validating hashes and signatures on received events. Outside the retries:
                        # a bad countersignature is not asked for again.
                        key_ids = countersignature.key_ids(invite, returned)
                        # The keys may be long in coming, and the rest is as large as the remote likes.
                        returned = countersignature.judged(invite, returned)
                        keys = await self._verify_keys(invite, key_ids, sending)
                verified = countersignature.verify(invite, returned, keys)
                return SignedInvite(
                    event=countersignature.merge(invite, verified),
                    signatures=verified,
                    endpoint=endpoint.name,
                    resolved=server,
                    invite=invite,
                    attempts=tuple(sending.log),
                    seconds=sending.seconds,
                )

    async def _with_retries(
        self, invite: Invite, sending: Sending
    ) -> tuple[Endpoint, Event, ResolvedServer]:
        def on_retry(error: InviteError, attempt: int, wait: float) -> None:
            sending.starts_again(error)
            self._observe(RetryScheduled, invite, error, attempt, wait, call=sending.call)

        try:
            return await with_retries(
                lambda attempt: self._exchange(invite, attempt, sending),
                self.policy.retries,
                self._clock,
                sending.deadline,
                on_retry,
            )
        except InviteError as error:
            told = furthest(sending.refused, error)
            if told is error:
                raise
            raise told from error

    # --- One attempt ----------------------------------------------------------------------------

    async def _exchange(
        self, invite: Invite, attempt: int, sending: Sending
    ) -> tuple[Endpoint, Event, ResolvedServer]:
        """Resolve, ask by v2 and, where the specification says so, by v1; return the event."""
        started = self._clock.monotonic()
        server = await self._resolver.resolve(invite.destination)
        seconds = self._clock.monotonic() - started
        self._observe(Resolved, invite, server, seconds, call=sending.call)
        refused: InviteRejectedError | None = None
        try:
            endpoint = V2
            reply = await self._put(invite, endpoint, server, attempt, sending)
            if falls_back_to_v1(reply, invite.room_version, self.policy.fallback):
                self._observe(FellBack, invite, reply, call=sending.call)
                answer = rejection(reply, V2, invite, now=self._clock.time())
                assert isinstance(answer, InviteRejectedError)  # noqa: S101  # 400 and 404 are
                refused, endpoint = answer, V1
                try:
                    reply = await self._put(invite, endpoint, server, attempt, sending)
                except InviteError as failed:
                    # It may be that nothing was sent by v1, but the remote has had it by v2.
                    failed.delivery = furthest(refused, failed).delivery
                    failed.other = refused
                    raise
            if reply.status != 200:
                error = rejection(reply, endpoint, invite, now=self._clock.time())
                if refused is not None and isinstance(error, InviteRejectedError):
                    error = more_telling(refused, error)
                raise error
            return endpoint, endpoint.read_event(reply), server
        except (UnreachableError, MalformedReplyError, InviteRejectedError) as error:
            error.other = error.other or refused
            # What was remembered led nowhere, or not to a homeserver: these give their errors codes.
            if not isinstance(error, InviteRejectedError) or error.errcode is None:
                await self._resolver.forget(invite.destination)
            raise

    async def _put(
        self,
        invite: Invite,
        endpoint: Endpoint,
        server: ResolvedServer,
        attempt: int,
        sending: Sending,
    ) -> Reply:
        request, call = endpoint.request(invite, self._key), sending.call
        # What was sent may come back: Dendrite repeats the room's state in `unsigned`.
        limit = self.policy.limits.reply_bytes + _LONGEST_SPELLING * len(request.body or b"")
        if self._observer is None:
            return await self._transport.exchange(server, request, limit=limit, log=sending.log)
        self._observe(RequestSent, invite, request, server, attempt, endpoint.name, call=call)
        started, tried = self._clock.monotonic(), len(sending.log)

        def course() -> tuple[float, Literal["v2", "v1"], tuple[Attempt, ...]]:
            seconds = self._clock.monotonic() - started
            return seconds, endpoint.name, tuple(sending.log[tried:])

        try:
            reply = await self._transport.exchange(server, request, limit=limit, log=sending.log)
        except BaseException as raised:
            error = raised if isinstance(raised, InviteError) else None
            self._observe(Unanswered, invite, request, error, *course(), call=call)
            raise
        self._observe(Replied, invite, request, reply, *course(), call=call)
        return reply

    async def _verify_keys(
        self, invite: Invite, key_ids: tuple[str, ...], sending: Sending
    ) -> ServerKeys:
        started = self._clock.monotonic()
        try:
            keys = await self._keyring.verify_keys(
                invite.destination, key_ids, invite.key_validity_time, sending.log
            )
        except InviteError as error:
            raise keys_unavailable(error.message, error.retry_after) from error
        seconds = self._clock.monotonic() - started
        self._observe(KeysObtained, invite, keys, seconds, call=sending.call)
        return keys

    # --- Around one invite ----------------------------------------------------------------------

    def _is_quiet(self) -> bool:
        """Whether round trips are felt, and not the work: so few servers are written to.

        Then each may have two connections opened ahead, one of them for the keys. Otherwise the
        keys are asked for after the invite, by its connection.
        """
        return 2 * self._slots.destinations <= self.policy.limits.connections_ahead

    def _keys_beside(self, destination: ServerName) -> _Beside:
        # A host's key ring is always asked; our own tells beforehand that there is nothing to do.
        at_hand = self._own_keys is not None and self._own_keys.are_at_hand(destination)
        return _Beside(None if at_hand else self._prefetch(destination))

    async def _prefetch(self, destination: ServerName) -> None:
        # In a task: all that have begun together are counted by now.
        if self._is_quiet():
            await self._keyring.prefetch(destination)

    def _check_origin(self, invite: Invite) -> None:
        if str(invite.origin) != self.server_name:
            raise InvalidInviteError(
                f"{invite.sender} is a user of {invite.origin}, "
                f"but this client sends for {self.server_name}",
                field="event.sender",
            )

    def _observe(
        self, observation: Callable[P, Observation], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Tell the observer; where there is none, what it would be told is not even made."""
        if self._observer is None:
            return
        try:
            self._observer(observation(*args, **kwargs))
        except Exception:  # noqa: BLE001  # whatever a host has put there
            # A metric that cannot be counted is no reason to lose an invite that was signed.
            _log.exception("the observer failed")


class _Beside:
    """Runs `work` while the block runs, and ends it with the block."""

    def __init__(self, work: Coroutine[Any, Any, None] | None) -> None:
        self._work = work
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        if self._work is not None:
            self._task = asyncio.create_task(self._work)

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None and self._task.cancel():  # It was not done: it mostly is.
            await asyncio.gather(self._task, return_exceptions=True)
