"""Tenacity, and nowhere else: one exchange, repeated while that may help and time remains."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import tenacity

from invite_client.errors import Delivery, InviteError
from invite_client.interfaces import Clock
from invite_client.policy import Retries

__all__ = ["furthest", "with_retries"]

T = TypeVar("T")


async def with_retries(
    exchange: Callable[[int], Awaitable[T]],
    retries: Retries,
    clock: Clock,
    deadline: float,
    on_retry: Callable[[InviteError, int, float], None] = lambda _error, _attempt, _wait: None,
) -> T:
    """Return what ``exchange(attempt)`` returns; attempts count from 1.

    Repeated are `InviteError`s that say so themselves (`retryable`). The wait is jittered and
    exponential, and not shorter than the remote's `retry_after`. A wait that does not end before
    the `deadline` (monotonic seconds) is not begun: the error is raised at once, with its
    `retry_after`, so that the caller can come back then. What is raised is the last error itself.
    """
    try:
        return await exchange(1)
    except InviteError as error:
        if not error.retryable:
            raise
        first = error  # Only now is there something for tenacity to do.

    backoff = tenacity.wait_random_exponential(multiplier=retries.first_wait, max=retries.max_wait)

    def wait(state: tenacity.RetryCallState) -> float:
        # A remote that says "now" has not said that it wants to be hammered.
        return max(backoff(state), _error(state).retry_after or 0.0)

    def stop(state: tenacity.RetryCallState) -> bool:
        # Tenacity computes the wait before it asks whether to stop.
        return (
            state.attempt_number >= retries.attempts
            or clock.monotonic() + state.upcoming_sleep >= deadline
        )

    def before_sleep(state: tenacity.RetryCallState) -> None:
        on_retry(_error(state), state.attempt_number, state.upcoming_sleep)

    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(
            lambda error: isinstance(error, InviteError) and error.retryable
        ),
        wait=wait,
        stop=stop,
        sleep=clock.sleep,
        before_sleep=before_sleep,
        reraise=True,
    )
    async for attempt in retrying:
        with attempt:
            number = attempt.retry_state.attempt_number
            if number == 1:
                raise first
            return await exchange(number)
    raise AssertionError("tenacity ends with a return or an error")  # pragma: no cover


def _error(state: tenacity.RetryCallState) -> InviteError:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, InviteError)  # noqa: S101  # only these are retried
    return error


def furthest(before: InviteError | None, error: InviteError) -> InviteError:
    """Return what to say of an event that was sent again: `error`, unless it came less far.

    "Not sent" is true of one attempt. That an earlier one may have arrived, or was answered, is what
    must be known of the event.
    """
    if before is None or error.delivery is not Delivery.NOT_SENT:
        return error
    return error if before.delivery is Delivery.NOT_SENT else before
