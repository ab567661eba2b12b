"""The configuration of `mi-prun-ab`: flags, `--config ab.toml`, or both, become one checked Config."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, field_validator, model_validator

from mi_prun.artefact import Record
from mi_prun.errors import UserError
from serve.ab.verdict.guardrail_rule import parse_guardrail
from serve.ab.verdict.schema import VerdictSettings

API_KEYS_VARIABLE = "MI_PRUN_AB_API_KEYS"
ADMIN_KEY_VARIABLE = "MI_PRUN_AB_ADMIN_KEY"
LONGEST_SHOWN = 60
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
HEADER_NAME = re.compile(r"[a-z0-9-]{1,64}")
URL_SIGNS = re.compile(r"[!-~]+")
PATH = re.compile(r"/[!-~]*")
ORIGIN = re.compile(r"https?://[a-z0-9._-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:.]+\](:[0-9]{1,5})?")
HOST = re.compile(r"([a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}\.?")  # of names that the resolver takes; in lower case
Sticky = Literal["header", "user", "api_key"]


class ArmConfig(Record):
    """An arm's target is one of: `url`, an engine that runs elsewhere; `model`, a folder or hub id; `plan`, with or
    without its dense `model`.

    flags, env: of an engine that is started here. Of one that runs elsewhere: upstream_model, the name it serves the
    model under, where that is not ours; api_key_env, the environment variable that holds its key; health_path, what is
    asked whether it is well (default: /health, and /v1/models where that is refused).
    """

    url: str | None = None
    model: str | None = None
    plan: Path | None = None
    flags: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    upstream_model: str | None = None
    api_key_env: str | None = None
    health_path: str | None = None

    @property
    def managed(self) -> bool:
        """Return whether its engine is started here."""
        return self.url is None

    @model_validator(mode="after")
    def _target(self) -> ArmConfig:
        if self.url is not None:
            if self.model or self.plan or self.flags or self.env:
                raise ValueError("url does not go with model, plan, flags or env: that engine runs elsewhere")
            check_url(self.url)
        elif not self.model and not self.plan:
            raise ValueError("name a model, a plan or a url")
        elif self.upstream_model or self.api_key_env:
            raise ValueError("upstream_model and api_key_env are of an engine that runs elsewhere (url)")
        elif self.health_path:
            raise ValueError("health_path is of an engine that runs elsewhere (url)")
        if self.health_path is not None and not PATH.fullmatch(self.health_path):
            raise ValueError(f"health_path {self.health_path!r}: a path from / on, of printable ASCII without spaces")
        return self


class Limits(Record):
    """Bounds on requests and connections, in seconds and bytes.

    request_s: for a client to send its request. send_s: for it to take what it was sent; its connection is cut off
    after twice as long at most. first_byte_s: for an arm to begin its answer (all of it, where it is not streamed).
    idle_s: between two parts of an answer. keep_alive_s: that a client's connection is kept without a request; longer
    than a load balancer in front keeps it. drain_s: for what is in flight at SIGTERM.
    """

    body_bytes: PositiveInt = 8 * 2**20
    header_bytes: PositiveInt = 32 * 2**10
    concurrency: PositiveInt = 1024
    connections: PositiveInt = 4096
    request_s: PositiveFloat = 30.0
    send_s: PositiveFloat = 60.0
    connect_s: PositiveFloat = 5.0
    first_byte_s: PositiveFloat = 600.0
    idle_s: PositiveFloat = 60.0
    keep_alive_s: PositiveFloat = 75.0
    drain_s: PositiveFloat = 30.0


class Health(Record):
    """When an arm counts as down.

    failures: so many failed probes in a row, `probe_s` apart. So many failed requests in a row open its circuit, which
    stays open for cool_down_s at first, and twice as long each time a trial fails, up to cool_down_max_s.
    """

    probe_s: PositiveFloat = 2.0
    probe_timeout_s: PositiveFloat = 2.0
    failures: PositiveInt = 3
    cool_down_s: PositiveFloat = 5.0
    cool_down_max_s: PositiveFloat = 60.0


class Restart(Record):
    """When an engine is started again: after it ended, or has not answered for hang_s.

    The start waits for back_off_s, and twice as long each time that the engine ends young, up to back_off_max_s.
    startup_s: time for an engine to become ready. end_s: time for it to end when it is told to.
    """

    startup_s: PositiveFloat = 900.0
    end_s: PositiveFloat = 15.0
    hang_s: PositiveFloat = 60.0
    back_off_s: PositiveFloat = 1.0
    back_off_max_s: PositiveFloat = 60.0


class ShadowSettings(Record):
    """How much is mirrored to another arm.

    share: part of the requests at the start, in [0, 1]; it can be changed live. in_flight: mirrors at a time, further
    ones are left out. timeout_s: for a mirror and its comparison. answer_bytes: the longest answer that is compared.
    """

    share: float = Field(default=0.0, ge=0.0, le=1.0)
    in_flight: PositiveInt = 4
    timeout_s: PositiveFloat = 120.0
    answer_bytes: PositiveInt = 2**20


class Config(Record):
    """The whole configuration.

    arms: in order; the first is the control unless another is named. split: weights, of any sum; an arm that is left
    out has weight 0. model_name: what clients ask for; "" until the first arm is asked, where that is a URL
    and no name is given. model_aliases: other names that its engines serve it under. experiment: what assignments are
    drawn by; another name is another draw. sticky: where the key of a client is looked for, in this order.
    cors_origins: pages that a browser lets use the API; "*" for all.
    """

    arms: dict[str, ArmConfig]
    split: dict[str, float]
    control: str
    model_name: str
    model_aliases: tuple[str, ...] = ()
    experiment: str
    sticky: tuple[Sticky, ...] = ("header", "user", "api_key")
    sticky_header: str = "x-mi-prun-sticky"
    cors_origins: tuple[str, ...] = ()
    guardrails: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = Field(8080, ge=1, le=65_535)
    state: Path = Path("mi-prun-ab.sqlite")
    access_log: Path | None = None
    log_prompts: bool = False
    log_folder: Path | None = None
    api_keys_file: Path | None = None
    admin_key_file: Path | None = None
    limits: Limits = Limits()
    health: Health = Health()
    restart: Restart = Restart()
    shadow: ShadowSettings = ShadowSettings()
    verdict: VerdictSettings = VerdictSettings()

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        """Fill in what is left out: the first arm is the control, and its model's name is ours."""
        if not isinstance(data, dict) or not isinstance(arms := data.get("arms"), dict) or not arms:
            return data
        first = next(iter(arms))
        filled = {"control": first, "split": {first: 1.0}, **data}
        target = arms[first]
        model = target.get("model") if isinstance(target, dict) else getattr(target, "model", None)
        filled.setdefault("model_name", model or "")
        filled.setdefault("experiment", "default")
        return filled

    @field_validator("arms")
    @classmethod
    def _arm_names(cls, arms: dict[str, ArmConfig]) -> dict[str, ArmConfig]:
        for name in arms:
            if not ARM_NAME.fullmatch(name):
                raise ValueError(
                    f"arm name {name!r} must be 1 to 32 letters, digits, - or _, and begin with a letter or digit"
                )
        return arms

    @field_validator("guardrails")
    @classmethod
    def _guardrails(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        for text in texts:
            try:
                parse_guardrail(text)
            except UserError as error:
                raise ValueError(str(error)) from error
        return tuple(dict.fromkeys(texts))

    @field_validator("sticky_header")
    @classmethod
    def _lower(cls, name: str) -> str:
        if not HEADER_NAME.fullmatch(name := name.lower()):
            raise ValueError(f"{name!r} is no header name")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if not self.arms:
            raise ValueError("no arm; give at least one --arm NAME=TARGET")
        if not self.model_name and next(iter(self.arms.values())).managed:
            raise ValueError("model_name is missing: the first arm has no model to take it from (--model-name)")
        for name in self.names:
            if "@" in name or any(ord(sign) < 0x21 or ord(sign) > 0x7E for sign in name):
                raise ValueError(f"model_name {name!r} must be printable ASCII without spaces and @")
        if "" in self.model_aliases:
            raise ValueError("model_aliases: a name must not be empty")
        for origin in self.cors_origins:
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise ValueError(f"cors_origins: {origin!r} must be http://HOST[:PORT], https://HOST[:PORT] or *")
        if not NAME.fullmatch(self.experiment):
            raise ValueError(
                f"experiment {self.experiment!r} must be 1 to 64 letters, digits, -, _ or ., and begin with a letter "
                "or digit"
            )
        if self.control not in self.arms:
            raise ValueError(f"control {self.control!r} is no arm (arms: {', '.join(self.arms)})")
        check_weights(self.split, self.arms)
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Return all names that clients may ask for, the model's own first."""
        return (self.model_name, *self.model_aliases)

    @property
    def key_variables(self) -> set[str]:
        """Return the environment variables that hold keys. They are no business of an engine."""
        of_arms = (arm.api_key_env for arm in self.arms.values() if arm.api_key_env)
        return {API_KEYS_VARIABLE, ADMIN_KEY_VARIABLE, *of_arms}

    def with_model_name(self, name: str) -> Config:
        """Return the same with another model name. Raises UserError where that cannot be one."""
        return _validated({**self.model_dump(), "model_name": name}, "model_name")

    @property
    def weights(self) -> dict[str, float]:
        """Return the weight of every arm, as the config has it; the live ones are the experiment's."""
        return {name: self.split.get(name, 0.0) for name in self.arms}


def check_url(url: str) -> None:
    """Check the URL of an arm: what passes can be asked, whether or not anybody answers there. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"url must be http://HOST[:PORT] or https://..., got {url}")
    if parts.username or parts.password:
        raise ValueError("url must not hold a password; name a variable that does by api_key_env")
    if not URL_SIGNS.fullmatch(url):
        raise ValueError(f"url {url!r}: printable ASCII only; write a host in its xn-- form, and a path with %")
    if not _is_host(parts.hostname):
        raise ValueError(f"url {url}: {parts.hostname!r} is no host name and no address")
    if parts.port == 0:  # any other that cannot be is urlsplit's own ValueError
        raise ValueError(f"url {url}: port must be in 1..65535")
    if parts.path.rstrip("/").endswith("/v1"):
        raise ValueError(f"url {url}: leave /v1 out, the paths of the API are put behind the url")


def _is_host(host: str) -> bool:
    if ":" not in host:
        return len(host) <= 253 and HOST.fullmatch(host) is not None
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def check_weights(weights: Mapping[str, float], arms: Mapping[str, object]) -> None:
    """Check the weights of a split. Raises ValueError, so that pydantic and the admin route say it in their own way."""
    for name, weight in weights.items():
        if name not in arms:
            raise ValueError(f"split names {name!r}, which is no arm (arms: {', '.join(arms)})")
        if not 0.0 <= weight <= 1e6:
            raise ValueError(f"weight of {name} must be in 0..1,000,000, got {weight:g}")
    if not sum(weights.values()) > 0:
        raise ValueError("at least one arm must have a weight above 0")


def read_config(file: Path | None, flags: Mapping[str, Any]) -> Config:
    """Return the Config of a file and of flags, which win; a flag that is None is not given. Raises UserError."""
    data = _read_toml(file) if file else {}
    for name, value in flags.items():
        if value is None:
            continue
        if isinstance(value, Mapping) and name not in ("split", "arms") and isinstance(data.get(name), dict):
            value = {**data[name], **value}
        data[name] = value
    origin = str(file) if file else "flags"
    if not data.get("arms"):
        raise UserError("no arm: give --arm NAME=TARGET at least once, or --config ab.toml with [arms.NAME]")
    return _validated(data, origin)


def _validated(data: Mapping[str, Any], origin: str) -> Config:
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            said = "there is no such field"
        elif first["type"] not in ("value_error", "missing") and isinstance(first["input"], str | int | float):
            said += f", got {repr(first['input'])[:LONGEST_SHOWN]}"
        raise UserError(f"{origin}: {where}{': ' if where else ''}{said}") from error


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{file} is not TOML: {error}") from error


def parse_arm(words: str) -> tuple[str, dict[str, str]]:
    """Read `NAME=TARGET`; the target is a URL, a plan (a .json file) or a model. Raises UserError."""
    name, equals, target = words.partition("=")
    if not equals or not name or not target:
        raise UserError(f"--arm {words}: it is NAME=TARGET, where TARGET is a model folder, hub id, plan.json or URL")
    if target.startswith(("http://", "https://")):
        return name, {"url": target}
    if target.endswith(".json"):
        return name, {"plan": target}
    return name, {"model": target}


def parse_split(words: str) -> dict[str, float]:
    """Read weights, such as `dense=95,pruned=5`. Raises UserError."""
    weights: dict[str, float] = {}
    for part in words.split(","):
        name, _, weight = part.strip().partition("=")
        try:
            if name in weights:
                raise UserError(f"--split {words}: {name} is named twice")
            weights[name] = float(weight)
        except ValueError as error:
            raise UserError(f"--split {words}: it is NAME=WEIGHT,NAME=WEIGHT, got {part!r}") from error
    return weights
