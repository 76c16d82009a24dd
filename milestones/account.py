"""What a child's messages come to: results on the parent's own checks, and what is wrong where one is missing.

Name, task and points of a check are never taken from the child, and what it says counts only in turn: a check begins,
and then has one result.
"""
from dataclasses import dataclass, field, replace
from typing import Any

from milestones.checking import BLOCKED, ERROR, FAILED, PASSED, UNATTEMPTED, Check, CheckResult
from milestones.children import TEXT, Messages

SAID = ("state", "what", "expected", "got", "reason", "needs", "seconds", "seed")  # what is the child's in a result
STATES = (PASSED, FAILED, UNATTEMPTED, BLOCKED, ERROR)
TAMPERED = "the checks were tampered with: "


@dataclass
class Account:
    """The messages of one child, taken in their order."""

    checks: dict[str, Check]
    results: dict[str, CheckResult] = field(default_factory=dict)
    acts: dict[str, str] = field(default_factory=dict)  # by the check in whose course it was done, "" before the first
    imports: list[str] = field(default_factory=list)  # modules that did not come to their end
    begun: str = ""
    tampered: str = ""
    broken: str = ""

    def take(self, message: dict[str, Any]) -> None:
        kind, value = next(iter(message.items()))
        try:
            getattr(self, f"take_{kind}")(value)
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # no message of ours
            self.take_tampered(f"{TAMPERED}a message came that no check sent ({error})")

    def take_begin(self, name: str) -> None:
        open_one = self.begun and self.begun not in self.results
        if open_one or name in self.results or name not in self.checks:
            self.take_tampered(TAMPERED + "a check began out of turn")
        self.begun = name

    def take_result(self, said: dict[str, Any]) -> None:
        name = said["check"]["name"]
        if name != self.begun or name in self.results or said["state"] not in STATES:
            self.take_tampered(TAMPERED + "a result came out of turn")
        elif name in self.checks:
            said = {key: value[:TEXT] if isinstance(value, str) else value for key, value in said.items()
                    if key in SAID}
            said |= {"needs": tuple(said["needs"]), "seconds": float(said["seconds"]), "seed": int(said["seed"])}
            self.results[name] = CheckResult(self.checks[name], **said)

    def take_act(self, what: str) -> None:
        self.acts.setdefault(self.begun, what)

    def take_import(self, what: str) -> None:
        self.imports.append(what[:TEXT])

    def take_tampered(self, what: str) -> None:
        self.tampered = self.tampered or what

    def take_failure(self, what: str) -> None:
        self.broken = self.broken or what


def understood(messages: Messages, checks: list[Check], ended: str) -> list[CheckResult]:
    """Results of those of the checks that a child came to; of all where none of what it says counts."""
    account = Account({check.name: check for check in checks})
    for message in messages:
        account.take(message)
    if account.tampered:
        return failed(checks, account.tampered)
    if "" in account.acts:
        return failed(checks, f"on import: {account.acts['']}")
    if not account.begun:
        why = f"on import: {ended}" if ended else "the check was not run"
        return failed(checks, account.broken or why)
    results = account.results
    if account.begun not in results:
        stopped = account.checks[account.begun]
        results[stopped.name] = failed([stopped], account.broken or ended or "the check gave no result")[0]
    for name, act in account.acts.items():
        results[name] = failed([account.checks[name]], act)[0]
    return [explained(result, account.imports) for result in results.values()]


def failed(checks: list[Check], what: str) -> list[CheckResult]:
    return [CheckResult(check, FAILED, what=what[:TEXT]) for check in checks]


def explained(result: CheckResult, imports: list[str]) -> CheckResult:
    """A failed check without a reason gets that of a module that did not come to its end."""
    if result.state != FAILED or result.reason or not imports:
        return result
    return replace(result, reason="; ".join(imports)[:TEXT])
