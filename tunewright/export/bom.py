"""The bill of materials: bom.cdx.json, a CycloneDX ML-BOM made of a version's evidence and the exported files.

cyclonedx-python-lib makes it, except for the model card and the kinds of data, which it has no classes for yet: they
are added to its JSON. Nothing in it depends on when or where it is written. What the evidence does not know, such as
the licences of packages, is left out.
"""
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false
# A decorator hides the arguments and the attributes of the library's classes from a type checker.

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.contrib.this.builders import this_component
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentScope, ComponentType, Pedigree
from cyclonedx.model.license import LicenseAcknowledgement
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

from tunewright.evidence.bundle import FOLDER, EvidenceBundle
from tunewright.export import card
from tunewright.export.evidence import CardEvidence, source_name
from tunewright.store.manifest import MANIFEST, digest_of

FILE = "bom.cdx.json"
SCHEMA = SchemaVersion.V1_6  # the library writes 1.7 as well, which fewer programs read
FIRST = ("$schema", "bomFormat", "specVersion", "serialNumber", "version", "metadata")  # for whoever reads it
SHA256 = 64  # hexadecimal digits; a source on the hub has its commit in place of a digest
UNNAMED = uuid.UUID(int=0)  # while the serial number is not known


class Provenance(NamedTuple):
    """How a version was made, for its bill of materials."""

    evidence: EvidenceBundle
    folder: Path  # with the files of the evidence
    digests: Mapping[str, str]  # tags of the version
    registered: datetime
    architectures: list[str]  # as config.json of the base names them


def write(made: Path, found: CardEvidence, form: card.ExportedForm, origin: Provenance) -> None:
    """Write bom.cdx.json into an exported folder that is otherwise complete."""
    base, data = _base(origin, form), [*_sources(origin.evidence), _splits(origin.evidence, found)]
    model = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="model",
        name=found.name,
        version=found.version,
        description=found.sentence,
        licenses=_licenses(form.license),
        components=_files(made, "file"),
        pedigree=Pedigree(ancestors=[Component(type=base.type, name=base.name, version=base.version, purl=base.purl)]),
        properties=_properties({"form": form.form, "dtype": form.dtype, **origin.digests}),
    )
    tool = Component(type=ComponentType.APPLICATION, name="tunewright", version=version("tunewright"))
    bom: Any = Bom(
        serial_number=UNNAMED,
        components=[base, *data, *_packages(origin.evidence)],
        metadata=BomMetaData(
            timestamp=origin.registered, component=model, tools=ToolRepository(components=[tool, this_component()])
        ),
    )
    bom.register_dependency(model, [base, *data])
    document = json.loads(make_outputter(bom, OutputFormat.JSON, SCHEMA).output_as_string())
    document["metadata"]["component"]["modelCard"] = _card(found, form, origin, data)
    for each in document["components"]:
        if each["type"] == ComponentType.DATA.value:
            each["data"] = [{"type": "dataset", "name": each["name"]}]
    content = json.dumps(document, sort_keys=True)
    document["serialNumber"] = uuid.uuid5(uuid.NAMESPACE_OID, content).urn
    document = {name: document[name] for name in FIRST} | document
    (made / FILE).write_text(f"{json.dumps(document, ensure_ascii=False, indent=2)}\n", encoding="utf-8")


def _card(
    found: CardEvidence, form: card.ExportedForm, origin: Provenance, data: Iterable[Component]
) -> dict[str, Any]:
    """The model card; CycloneDX has no place for the level of an interval, and settings are properties."""
    verdict, settings = found.verdict, origin.evidence.settings
    kind = settings["method"]["kind"]
    said = {"method.kind": kind}
    said |= {f"method.{name}": settings["method"][name] for name in card.METHOD.get(kind, ())}
    said |= {f"training.{name}": settings["training"][name] for name in card.TRAINING}
    said |= {
        "verdict": found.tags.get("verdict", verdict.decision),
        "metric": verdict.metric,
        "test.rows": verdict.num_rows,
        "interval.level": round(2 * verdict.confidence - 1, 6),
    }
    parameters = {
        "approach": {"type": "supervised"},
        "task": "text-generation",
        "modelArchitecture": ", ".join(origin.architectures),
        "datasets": [{"ref": each.bom_ref.value} for each in data],
        "inputs": [{"format": "string"}],
        "outputs": [{"format": "string"}],
    }
    measured = [
        {
            "type": name,
            "value": f"{mean:.6g}",
            "confidenceInterval": {"lowerBound": f"{low:.6g}", "upperBound": f"{high:.6g}"},
        }
        for name, (low, mean, high) in verdict.own.get(card.OWN, {}).items()
    ]
    return {
        "modelParameters": {name: value for name, value in parameters.items() if value},
        "quantitativeAnalysis": {"performanceMetrics": measured},
        "considerations": {"technicalLimitations": [*card.limits(found, form)]},
        "properties": [{"name": each.name, "value": each.value} for each in _properties(said)],
    }


def _base(origin: Provenance, form: card.ExportedForm) -> Component:
    """The base, with its files where the run made them: others are known by the digest over them all, or a commit."""
    record = next(each.record for each in origin.evidence.stages if each.stage == "base")
    reference = record["reference"]
    is_named = form.hub is not None or reference.startswith("package:")
    place, weights = f"{FOLDER}/base/{MANIFEST}", {}
    if place in origin.evidence.files:
        listed = json.loads((origin.folder / place).read_text(encoding="utf-8"))["files"]
        weights = {name: each["sha256"] for name, each in listed.items() if name.startswith("weights/")}
    commit, purl = form.hub[1] if form.hub else None, None
    if form.hub:
        group, _, name = form.hub[0].rpartition("/")
        purl = PackageURL("huggingface", group or None, name, commit)
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="base",
        name=reference if is_named else Path(reference).name,
        version=commit,
        purl=purl,
        components=[_file("base", name.removeprefix("weights/"), digest) for name, digest in sorted(weights.items())],
        properties=_properties({"digest.base": record["weights_digest"]}),
    )


def _sources(evidence: EvidenceBundle) -> Iterator[Component]:
    record = next(each.record for each in evidence.stages if each.stage == "ingest")
    for number, (path, digest) in enumerate(evidence.sources.items(), start=1):
        is_digest = len(digest) == SHA256
        yield Component(
            type=ComponentType.DATA,
            bom_ref=f"data:{number}",
            name=source_name(path),
            version=None if is_digest else digest,
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)] if is_digest else None,
            description=record["detected"].get(path),
            properties=_properties({"use_as": record["given"].get(path)}),
        )


def _splits(evidence: EvidenceBundle, found: CardEvidence) -> Component:
    digest = next(each.digest for each in evidence.stages if each.stage == "split")
    return Component(
        type=ComponentType.DATA,
        bom_ref="data:splits",
        name=f"{found.name} splits",
        version=None if evidence.data_version is None else str(evidence.data_version),
        description="the rows of all sources that are left after checks and deduplication, in splits",
        properties=_properties({"digest.splits": digest} | {f"rows.{name}": rows for name, rows in found.rows.items()}),
    )


def _packages(evidence: EvidenceBundle) -> Iterator[Component]:
    """Python and all packages of the environment that the version was made in; nothing of it is in the folder."""
    made_with: dict[str, Any] = {"scope": ComponentScope.EXCLUDED}
    yield Component(type=ComponentType.PLATFORM, bom_ref="python", name="Python", version=evidence.python, **made_with)
    own = {"commit": evidence.commit, "code": evidence.code}
    for name, number in evidence.packages.items():
        is_own = name == "tunewright"  # it may be a checkout, which no index has
        purl = PackageURL("pypi", None, name, number)
        yield Component(
            type=ComponentType.LIBRARY,
            bom_ref=name if is_own else purl.to_string(),
            name=name,
            version=number,
            purl=None if is_own else purl,
            properties=_properties(own if is_own else {}),
            **made_with,
        )


def _files(folder: Path, kind: str) -> list[Component]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [_file(kind, path.relative_to(folder).as_posix(), digest_of(path)) for path in paths]


def _file(kind: str, name: str, digest: str) -> Component:
    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=digest)]
    return Component(type=ComponentType.FILE, bom_ref=f"{kind}:{name}", name=name, hashes=hashes)


def _licenses(given: str | None) -> list[Any]:
    declared = LicenseAcknowledgement.DECLARED
    return [LicenseFactory().make_from_string(given, license_acknowledgement=declared)] if given else []


def _properties(values: Mapping[str, Any]) -> list[Property]:
    """The values that are known, under names of this project."""
    known = {name: value for name, value in values.items() if value is not None and value != ""}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in known.items()}
    return [Property(name=f"tunewright:{name}", value=text) for name, text in texts.items()]
