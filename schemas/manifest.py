"""The small JSON receipt of a sealed artifact: what it is, what it was made from, its files.

Tasks return manifests and never arrays. A manifest is written last, so its existence means that
the artifact is complete.
"""

from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from schemas.complaints import complaints
from schemas.errors import CorruptArtifact
from schemas.frozen import Frozen, canonical_json, refusal, refuse


def _stays_inside(name: str) -> str:
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name:
        raise refusal(f"'{name}' is no file of the artifact's own folder")
    return name


class FileRecord(Frozen):
    """One file of an artifact."""

    name: Annotated[str, AfterValidator(_stays_inside)]
    """Path relative to the artifact's folder, with forward slashes."""
    bytes: Annotated[int, Field(ge=0)]
    """Its size."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Digest of its content."""


class Manifest(Frozen):
    """The receipt of one sealed artifact."""

    stage: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]
    """What kind of artifact it is: the first folder of its place."""
    key: Annotated[str, Field(pattern=r"^[0-9a-f]+$")]
    """Digest of everything that it depends on: the second folder of its place."""
    version: int | str
    """Version of the algorithm; raised when the numbers change."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """Digests of what it was made from, by role."""
    facts: dict[str, JsonValue] = Field(default_factory=dict)
    """What is worth knowing without opening the files."""
    files: tuple[FileRecord, ...] = ()
    """Its files, without the manifest itself."""
    created_at: Annotated[AwareDatetime, Field(default_factory=lambda: datetime.now(UTC))]
    """When it was sealed."""

    @model_validator(mode="after")
    def _files_are_distinct(self) -> Self:
        names = [file.name for file in self.files]
        if repeated := {name for name in names if names.count(name) > 1}:
            refuse([(("files",), f"{sorted(repeated)[0]} is listed twice")])
        return self

    def file(self, name: str) -> FileRecord:
        """The record of one file.

        Raises:
            CorruptArtifact: If the artifact has no such file.
        """
        for record in self.files:
            if record.name == name:
                return record
        raise CorruptArtifact(
            f"artifact {self.stage}/{self.key} has no file '{name}'; "
            "delete its folder and run again to rebuild it"
        )

    def to_json(self) -> str:
        """One line of canonical JSON."""
        return canonical_json(self.model_dump(mode="json")) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            CorruptArtifact: If it is no manifest.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            problem = complaints(error, cls, {})[0]
            raise CorruptArtifact(
                f"a manifest cannot be read: {problem}; "
                "delete the artifact's folder and run again to rebuild it"
            ) from None
