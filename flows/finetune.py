"""The pipeline, from files to a registered model: the order of the stages and what each reads.

The flow's signature is the form in the Prefect UI: one parameter a section, described in tunewright/config/.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any

import httpx
from prefect import State, flow
from prefect.client.orchestration import get_client
from prefect.runtime import deployment

from tunewright import config
from tunewright.artifacts import (
    Adapter,
    Answers,
    Base,
    Contender,
    Divergence,
    EndingRule,
    Judged,
    Prompts,
    RunArtifacts,
    Splits,
    Tokens,
)
from tunewright.config import Gate, Settings, Stage
from tunewright.cost_model import devices, of_run
from tunewright.errors import AnotherChampion
from tunewright.flows import budget, finished, report
from tunewright.flows.announcing import announce_drift, tell_files
from tunewright.flows.calls import Plan, Reached, Run, Step, training_inputs
from tunewright.flows.inputs import Inputs, inputs, looked_at
from tunewright.flows.live import seen_in_mlflow
from tunewright.flows.parameters import FLOW, identifier, named
from tunewright.flows.run_name import (
    cancel_stopped,
    end_killed,
    outlive_worker,
    require_kept_home,
    run_name,
    say_stopped,
    terminal_run,
)
from tunewright.registry.address import ONE_SERVER, by_environment, only_here
from tunewright.registry.candidate import Candidate
from tunewright.registry.versions import require_answer
from tunewright.serving import EXAMPLES
from tunewright.store import data_versions, in_use
from tunewright.store.naming import naming_machine
from tunewright.tasks.base import base as load_base
from tunewright.tasks.check import check
from tunewright.tasks.decide import decide
from tunewright.tasks.dedupe import dedupe
from tunewright.tasks.divergence import divergence
from tunewright.tasks.evaluate import evaluate
from tunewright.tasks.examples import examples
from tunewright.tasks.forgetting import forgetting
from tunewright.tasks.ingest import ingest, watching
from tunewright.tasks.judge import judge as ask_judge
from tunewright.tasks.label_errors import label_errors
from tunewright.tasks.lm_eval import lm_eval
from tunewright.tasks.prefer import prefer
from tunewright.tasks.prepend import prepend
from tunewright.tasks.prompt import prompt
from tunewright.tasks.register import register
from tunewright.tasks.rehearse import rehearse
from tunewright.tasks.reinforce import reinforce
from tunewright.tasks.render import render
from tunewright.tasks.scan import scan
from tunewright.tasks.split import split
from tunewright.tasks.train import rendezvous
from tunewright.tasks.train.stage import train
from tunewright.tasks.verdict_page import verdict_page

log = logging.getLogger("tunewright")

GIVEN_GENERAL = "training.keep_general=auto adds no general rows: a source in data.sources has use_as: replay"
ASKS_APIS: ContextVar[bool] = ContextVar("asks_apis", default=True)  # whether models behind APIs are asked


def pipeline(s: Settings, call: Run | Plan) -> None:
    """Every stage in order; `call` runs it or looks it up (flows/calls/)."""
    read = inputs(s)
    data_versions.require_history(s.registry.name)
    s = call.draw(s, read)
    engine = s.data.engine
    rows = call(ingest)(data=s.data.without("engine"), files=read.files, needs=read.needs, engine=engine)
    before = data_versions.before(s.registry.name, rows, s.split, is_sample=s.data.limit is not None)
    base = call(load_base)(
        reference=s.model.base,
        revision=s.model.revision,
        identity=read.base,
        chat_template=read.chat_template,
        here=read.base_here,
    )
    call.keep_base(base, s.registry)
    all_rows, rehearsed = rows, None
    if s.rehearses:
        shares = {"share": s.split.replay, "untrained": s.split.validation + s.split.test}
        all_rows = rehearsed = call(rehearse)(rows=rows, base=base, **shares)
    checked = call(check)(
        rows=all_rows,
        checks=s.checks.without("label_error_folds"),
        special_tokens=base.special_tokens,
        own=read.own,
        before=before.checked,
        before_number=before.checked_number,
        engine=engine,
    )
    unique = call(dedupe)(
        rows=checked, settings=s.dedupe, embedding=read.embedding, earlier=before.unique, engine=engine
    )
    splits = call(split)(rows=unique, held_out=rows, settings=s.split, earlier=before.splits, engine=engine)
    call.accept_version(before, rows, all_rows, checked, unique, splits)
    call.require_metrics(s, splits, read.schema)
    most = s.checks.max_quarantined_share
    tokens = call(render)(
        splits=splits, base=base, model=s.model.without("start"), max_quarantined_share=most, engine=engine
    )
    call.require_learnable(s, tokens)
    best = call(scan)(base=base, share=s.method.share) if s.method.kind == "spectrum" else None
    inputs_of = training_inputs(s, read, tokens, base, best, call.start(s, base, splits, tokens, best))
    call.approve_cost(s, inputs_of)
    if s.checks.label_error_folds:
        call(label_errors)(splits=splits, num_folds=s.checks.label_error_folds, **inputs_of["label_errors"])
    has_bfloat16 = devices.machine().device.has_bfloat16
    measurement = s.measured().resolved(tokens.longest_answer, s.model.max_length, has_bfloat16=has_bfloat16)
    if (kind := s.method.prompt) is None:
        *earlier, adapter = _trained(s, call, inputs_of)
    else:
        earlier = list[Adapter]()
        searches = kind == "retrieval"
        adapter = call(examples)(
            splits=splits,
            tokens=tokens,
            base=base,
            kind=kind,
            shots=s.evaluation.shots,
            max_new_tokens=measurement.limit,
            embedding_model=s.dedupe.semantic_model if searches else "",
            embedding=read.retrieval if searches else "",
        )

    tuned = Contender(name="candidate", base=base, model=adapter.path("model"), model_digest=adapter.digest)
    measured = (Contender(name="base", base=base), tuned)
    prompts, prompted = _prompted(s, call, read, splits, tokens, base, measurement.limit)
    tuned = tuned if s.trains else _with_examples(call, splits, tokens, tuned)
    opponent = call.champion(s.registry, adapter, base, splits)
    if opponent and opponent.model and (opponent.model / EXAMPLES).is_file():
        opponent = _with_examples(call, splits, tokens, opponent)
    deciding = s.gate.metric
    answered = partial(
        call(evaluate), tokens=tokens, evaluation=measurement, own=read.metrics, schema=read.schema, decides=deciding
    )
    answers = {each.name: answered(contender=each) for each in (measured[0], *([opponent] if opponent else []))}
    own = answered(contender=tuned)
    share = call.begin_test_use(adapter, own)
    rule = None if s.evaluation.complete else _ending(s.gate.spending(share), own)
    answers |= {each.name: answered(contender=each, rule=rule) for each in prompted if not each.api} | {tuned.name: own}
    replied = partial(
        call.optional(evaluate),
        tokens=tokens,
        evaluation=measurement.model_copy(update={"api_budget": s.evaluation.api_budget}),
        own=read.metrics,
        schema=read.schema,
        decides=deciding,
        rule=rule,
    )
    answers |= {each.name: found for each in prompted if each.api and (found := replied(contender=each))}
    precision = measurement.precision
    general = tuple(call(forgetting)(contender=each, precision=precision) for each in measured if s.measures_forgetting)
    of_tasks = partial(call(lm_eval), lm_eval=s.lm_eval, identity=read.lm_eval, precision=precision)
    general += tuple(of_tasks(contender=each) for each in measured if s.lm_eval.tasks)
    moved = _divergence(s, call, tuned, earlier, own, tokens)
    verdict = call(decide)(
        answers=tuple(answers.values()), splits=splits, gate=s.gate, general=general, alpha_share=share
    )
    verdict = call.count_test_use(verdict, adapter, own, splits, opponent, s)
    judged = _judge(s, call, answers, splits)
    made = RunArtifacts(
        name=s.registry.name,
        rows=rows,
        rehearsed=rehearsed,
        checked=checked,
        unique=unique,
        splits=splits,
        tokens=tokens,
        base=base,
        adapter=adapter,
        before=tuple(earlier),
        answers=tuple(answers.values()),
        verdict=verdict,
        test_set_uses=verdict.test_set_uses,
        warnings=verdict.warnings,
        approval=s.gate.approval,
        general=general,
        prompts=prompts,
        judged=judged,
        divergence=moved,
    )
    candidate = Candidate(
        run=made,
        page=call(verdict_page)(run=made, price=budget.price_here(s.operation), num_devices=s.compute.num_ranks),
        lineage={file.path: file.digest for file in read.files},
        data_version=before.number,
        challenged=opponent.version if opponent else "",
        settings=s.model_copy(update={"operation": config.Operation()}),  # which shapes no result
    )
    call.request_approval(call(register)(candidate=candidate), s.registry)


def _trained(s: Settings, call: Run | Plan, inputs_of: Mapping[str, Mapping[str, Any]]) -> tuple[Adapter, ...]:
    """The trainings in their order: on answers, on preference pairs, and on rewards, as far as they are set."""
    made = [call(train)(**inputs_of["train"])] if s.trains_on_answers else []
    if s.preference.method != "none":
        made.append(call(prefer)(begins_as=made[-1] if made else None, **inputs_of["prefer"]))
    if s.grpo.rewards:
        made.append(call(reinforce)(begins_as=made[-1] if made else None, **inputs_of["reinforce"]))
    return tuple(made)


def _prompted(
    s: Settings, call: Run | Plan, read: Inputs, splits: Splits, tokens: Tokens, base: Base, max_new_tokens: int
) -> tuple[Prompts | None, tuple[Contender, ...]]:
    """The base, asked by each kind of prompt that the settings name, and the models behind APIs."""
    names, apis = s.prompted, s.evaluation.api_models
    if not (names or apis):
        return None, ()
    prompts = call(prompt)(
        splits=splits,
        tokens=tokens,
        base=base,
        contenders=names,
        shots=s.evaluation.shots,
        max_new_tokens=max_new_tokens,
        embedding_model=s.dedupe.semantic_model,
        embedding=read.retrieval,
        asks_apis=bool(apis),
        documents=read.documents,
    )
    contender = partial(Contender, base=base, prompts_digest=prompts.digest)
    return prompts, (
        *(
            contender(name=name, prompts=prompts.path(f"{name}.parquet"))
            for name in names
            if name not in prompts.left_out
        ),
        *(
            contender(name=each.contender, prompts=prompts.path("messages.jsonl"), api=each)
            for each in apis
            if ASKS_APIS.get()
        ),
    )


def _with_examples(call: Run | Plan, splits: Splits, tokens: Tokens, contender: Contender) -> Contender:
    """A contender that is the base with examples before each question, with the test rows as it is asked them."""
    rows = call(prepend)(contender=contender, splits=splits, tokens=tokens)
    asked = {"prompts": rows.path("test.parquet"), "prompts_digest": rows.digest}
    return contender.model_copy(update={"model": None, **asked})


def _ending(gate: Gate, candidate: Answers) -> EndingRule:
    """When a prompt need not answer more test rows, by a gate that has what this use of them may spend."""
    metric = gate.decides_by(candidate.metric)
    return EndingRule(candidate=candidate, metric=metric, tolerance=gate.tolerance, confidence=gate.confidence)


def _divergence(
    s: Settings, call: Run | Plan, tuned: Contender, earlier: Sequence[Adapter], own: Answers, tokens: Tokens
) -> Divergence | None:
    if not s.measures_divergence:
        return None
    reference = Contender(name="the base", base=tuned.base)
    if earlier:
        begun, said = earlier[-1], earlier[-1].in_words or "SFT"
        given = {"model": begun.path("model"), "model_digest": begun.digest}
        reference = reference.model_copy(update={"name": f"the model after {said}", **given})
    return call(divergence)(candidate=tuned, reference=reference, answers=own, tokens=tokens)


def _judge(s: Settings, call: Run | Plan, answers: Mapping[str, Answers], splits: Splits) -> Judged | None:
    if not (s.judge.url and s.judge.model):
        return None
    asked = tuple(answers[name] for name in ("candidate", "base", "champion") if name in answers)
    return call.optional(ask_judge)(
        answers=asked, splits=splits, url=s.judge.url, model=s.judge.model, rows=s.judge.rows
    )


@flow(name=FLOW, flow_run_name=run_name, on_crashed=[cancel_stopped])
def finetune(
    data: config.Data,
    model: config.Model,
    method: config.Method = config.Method(),
    training: config.Training = config.Training(),
    preference: config.Preference = config.Preference(),
    grpo: config.Grpo = config.Grpo(),
    compute: config.Compute = config.Compute(),
    evaluation: config.Evaluation = config.Evaluation(),
    lm_eval: config.LmEval = config.LmEval(),
    judge: config.Judge = config.Judge(),
    gate: config.Gate = config.Gate(),
    registry: config.Registry = config.Registry(),
    checks: config.Checks = config.Checks(),
    dedupe: config.Dedupe = config.Dedupe(),
    split: config.Split = config.Split(),
    until: Stage = "register",
    refresh: tuple[Stage, ...] = (),
    operation: config.Operation = config.Operation(),
) -> State[tuple[Step, ...]]:
    """Turns instruction data into a registered fine-tuned model and a decision you can defend.

    Returns the steps, as a state that is named after the verdict. Stages that have run on the same inputs are not run
    again.

    Args:
        until: The last stage to run
        refresh: Stages to run again even if nothing changed
    """
    given: dict[str, Any] = {**locals(), "registry": by_environment(named(registry, deployment.name))}
    settings = Settings(**{section: given[section] for section in Settings.model_fields})
    config.make_home()
    config.prepare_environment(settings)
    if log.level == logging.NOTSET:  # a worker's run: Prefect adds its handler, but leaves the level at root's WARNING
        log.setLevel(logging.INFO)
    say_stopped()
    with naming_machine():
        if deployment.id:
            outlive_worker()
            require_kept_home()
        else:
            with suppress(httpx.HTTPError):  # the server is asked again by the next run
                end_killed(partial(get_client, sync_client=True))
        report.show_settings(settings)
        steps = run(settings, until, refresh)
    finished.keep(steps)
    announce_drift(steps, settings, until)
    return report.publish(steps, settings)


def run(settings: Settings, until: Stage, refresh: Sequence[Stage], *, is_variant: bool = False) -> tuple[Step, ...]:
    """Runs the pipeline up to `until`, and returns what was done; its comparison logs a variant to MLflow.

    Where the alias moves while the candidate is measured, it is compared with the new champion as well, once. Raises
    TrackingError before the first stage where an MLflow that a later one needs does not answer, and ConfigError where
    operation.budget has no price to go by.
    """
    calls = Run(settings, until, refresh)
    if "evaluate" in calls.stages or (settings.model.start == "champion" and calls.trainings):  # which look it up
        require_answer(settings.registry)
    if "evaluate" in calls.stages and (said := only_here(settings.registry)):
        log.warning("%s; %s", said, ONE_SERVER)
    if calls.trainings:
        budget.require_price(settings.operation)
    shown = nullcontext() if is_variant else seen_in_mlflow(calls)
    told = of_run(priority=settings.operation.priority, devices=settings.compute.devices)
    met = rendezvous.served(settings.compute.nodes if calls.trainings else 1)
    with (
        in_use.by_a_run(),
        in_use.of_terminal(terminal_run()),
        looked_at(settings),
        shown,
        naming_machine(),  # also to MLflow
        told,
        met,
        suppress(Reached),
    ):
        tell_files(inputs(settings).files)
        if settings.training.keep_general == "auto" and not settings.rehearses:
            log.info(GIVEN_GENERAL)
        try:
            pipeline(settings, calls)
        except AnotherChampion as error:
            log.warning("%s", error)
            calls.begin_again()
            pipeline(settings, calls)
    if deployment.name:
        watching.keep_read(identifier(deployment.name), calls.files)
    return tuple(calls.steps)


def plan(settings: Settings, until: Stage, refresh: Sequence[Stage]) -> tuple[Step, ...]:
    """Return the steps of a run up to `until`, each with the reason why it would run or not; execute nothing."""
    calls = Plan(settings, until, refresh)
    with suppress(Reached):
        pipeline(settings, calls)
    return tuple(calls.steps)
