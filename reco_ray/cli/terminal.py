"""Terminal output while stages run."""

from typing import TYPE_CHECKING

from reco_ray.contents import EmbeddingsContent
from reco_ray.files.storage import absolute, join
from reco_ray.outcome import Outcome
from reco_ray.presentation.console import console
from reco_ray.stages import Listener
from reco_ray.vocabulary import Vocabulary, summarize, unreadable_words

if TYPE_CHECKING:
    from reco_ray.sweeps.run_trial import TrialRecord
    from reco_ray.sweeps.sweep_plan import SweepPlan


class Terminal(Listener):
    """Prints a line for every vocabulary, artifact and trial."""

    def vocabulary(self, vocabulary: Vocabulary, name: str = "") -> None:
        """Prints the concepts, and warnings for words that models cannot interpret."""
        console.print(f"{name + ': ' if name else ''}{summarize(vocabulary)}")
        for line in unreadable_words(vocabulary):
            console.print(f"warning    {line}")

    def outcome(self, outcome: Outcome) -> None:
        """Prints counts, time and place of an artifact, and where its rejected images are listed."""
        manifest, uri = outcome.manifest, absolute(outcome.uri)
        if manifest is None:
            console.print(f"{outcome.stage:<10} {outcome.error}")
            return
        counts = ", ".join(f"{count:,} {what}" for what, count in manifest.counts.items())
        time = f"{manifest.seconds:.1f} s" if outcome.new else "nothing to do, made before"
        console.print(f"{outcome.stage:<10} {counts}   {time}   {uri}")
        if outcome.new and manifest.counts.get("rejected"):
            content = manifest.content
            reasons = content.rejected_by_reason if isinstance(content, EmbeddingsContent) else {}
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in reasons.items())
            console.print(f"{'rejected':<10} {kinds or 'each with its reason'}   {join(uri, 'rejected')}")

    def pushed(self, address: str) -> None:
        """Prints where an export was pushed to."""
        console.print(f"pushed     {address}")

    def trial(self, plan: "SweepPlan", record: "TrialRecord") -> None:
        """Prints the result of a trial."""
        from reco_ray.sweeps.sweep_report import summary

        console.print(summary(plan, record))
