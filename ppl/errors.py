"""One exception family: catch `PPLError` and nothing of this library escapes it.

Every message names the place (site, particle, model or verifier) and what to do about it.
"""

from __future__ import annotations

from typing import Any


class PPLError(Exception):
    """Base class of every error raised on purpose by this library."""


class ArgumentError(PPLError, TypeError, ValueError):
    """An argument that is of no kind its call takes; the message begins with its name."""


class ModelNotFoundError(PPLError):
    """A model or verifier could not be loaded from the given id, folder or file."""


class UnsupportedModelError(PPLError):
    """The model loads, but cannot be forked exactly (its cache kind is named in the message)."""


class PromptError(PPLError):
    """A prompt, question or literal that cannot be asked: empty, too long, no text, refused or
    dropped by the chat template, or put after the end of a text."""


class TokenizerError(PPLError, TypeError):
    """Something made with one tokenizer meets another (both are named in the message)."""


class StepNeverEndedError(PPLError):
    """`until=` never came true before the context was full, and no `max_tokens` was given."""


class NoAllowedTokenError(PPLError):
    """The `allowed=` rule left no token with positive probability."""


class ObservationError(PPLError):
    """`obs=` of a kind that the distribution does not speak about."""


class VerifierError(PPLError):
    """A verifier raised, or returned NaN, a number out of range, or the wrong number of scores."""


class PRMFormatError(PPLError):
    """A reward model's labels do not match the format that was declared for it."""


class ProgramError(PPLError):
    """The user's program raised; the original exception is chained as `__cause__`."""


class ToolError(PPLError):
    """A function that a program called (`ppl.call`) raised, or was late; the program may catch it.
    Or a model's tool call cannot be read."""


class DuplicateSiteError(PPLError):
    """Two sample statements of one particle share a name."""


class NonDeterministicProgramError(PPLError):
    """A replayed program did not repeat the choices its record says it made."""


class GuideError(PPLError):
    """A guide proposes something the model cannot use."""


class WeightError(PPLError):
    """A site's log-probability is NaN or plus infinity."""


class SearchStateError(PPLError):
    """A saved search or posterior cannot be continued here."""


class AllParticlesDeadError(PPLError):
    """Every particle has weight zero.

    The evidence estimate is then exactly zero (`log_evidence` is minus infinity), which is what an
    average over seeds must count; `posterior` (a `ppl.Posterior`) holds everything seen until then.
    """

    log_evidence = float("-inf")

    def __init__(self, message: str, posterior: Any = None) -> None:
        super().__init__(message)
        self.posterior = posterior


class TaskError(PPLError):
    """A task's questions or its answer checker are unavailable, or the checker failed."""


class StudyError(PPLError):
    """A study cannot be read or run, or would mix its results with those of another one."""


class SandboxError(PPLError):
    """Model-written code was not run, because it cannot be isolated here. Never a failed test."""


class SteeringError(PPLError):
    """No module of a planner's gave a text; `attempts` (`ppl.programs.Attempt`) say why."""

    def __init__(self, message: str, attempts: Any = ()) -> None:
        super().__init__(message)
        self.attempts = tuple(attempts)


class GrammarError(PPLError):
    """A grammar, regular expression or JSON schema cannot be used."""


class WorkerError(PPLError):
    """A helper process died, hung or does not start. What it was asked stays unknown."""


class MathAnswerError(PPLError):
    """A gold answer that the comparison cannot read."""


class LeanError(PPLError):
    """Lean does not start, or fails at a command that is no proof. Never a failed proof."""


class ServerError(PPLError):
    """A server that runs a model fails, refuses, or cannot do exactly what is asked of it."""
