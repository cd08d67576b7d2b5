"""The agent's settings, in three stages: fragments (YAML files), inputs (environment, flags), validated settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import msgspec
import yaml

from rebootd.core.errors import InvalidInput
from rebootd.core.methods import METHODS
from rebootd.tls.files import TlsFiles

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

UNREADABLE = (yaml.YAMLError, ValueError, RecursionError)
"""What PyYAML raises: days that no month has are ValueErrors, brackets without end a RecursionError."""
DEFAULT_CONFIG = "/etc/rebootd/agent.yaml"
ENV_PREFIX = "REBOOTD_AGENT_"
TOOL_SOURCES = ("needs-restarting", "zypper", "rpm-ostree", "bootc", "update-engine")
NAME_ACCEPTED = "letters, digits, '.', '_' and '-', at most 128, beginning with a letter or digit"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

Seconds = Annotated[float, msgspec.Meta(gt=0, le=7 * 86400)]


class AgentSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the agent can be told. Durations are seconds, files and folders are paths, ``""`` means not given.

    ``name``: the machine's name; not given, it is the node name of the local Consul agent (``mark: agent``) or the
    host's name. ``consul``: address of the Consul to talk to; not given, Consul's own environment variables, else
    ``127.0.0.1:8500``. ``mark``: where the out mark goes: ``agent`` (local Consul agent), ``catalog`` (for hosts
    without one) or ``none``. ``dns``: DNS servers to ask in order, each ``address:port`` or ``system``.
    ``coordinators``: URLs that replace discovery (tests, a fleet without Consul DNS). ``tls_ca``: the authority that
    daemons' certificates come from; with it only https is spoken, and only to a certificate that says daemon, whatever
    its address. ``tls_cert`` and ``tls_key``: what this machine shows; ``tls_crl``: revocation lists. ``detect``: which
    sources say whether a reboot is required (see :mod:`rebootd.agent.detect`), ``auto``: those that fit the
    distribution. ``kernel``: told instead of the running one. ``reboot_method``: how this host reboots unless a
    directive says otherwise; ``reboot_command`` is that of the method ``reboot``. ``userspace_command`` tells how often
    only the userspace was rebooted. ``traffic_wait``: how long a drain waits after the out mark; with
    ``traffic_ports``, until no connection from other hosts was seen on them for so long, and after ``traffic_timeout``
    the drain fails.
    ``target``: the systemd unit that is reached while in service. ``on_unreachable``: what a booted host does that no
    coordinator answers. ``inhibit``: whether others' shutdowns are delayed for a drain (``auto``: when the agent is a
    service of systemd).
    """

    name: str = ""
    rack: str = ""
    chassis: str = ""
    labels: dict[str, str] = {}
    kernel: str = ""
    machine_id_file: str = "/etc/machine-id"
    boot_id_file: str = "/proc/sys/kernel/random/boot_id"
    state_dir: str = "/var/lib/rebootd"
    run_dir: str = "/run/rebootd"
    hooks_dir: str = "/etc/rebootd"
    consul: str = ""
    consul_token_file: str = ""
    mark: str = "agent"
    mark_timeout: Seconds = 120
    dns: tuple[str, ...] = ("127.0.0.1:8600", "system")
    dns_timeout: Seconds = 2
    domain: str = "consul"
    service: str = "rebootd"
    scheme: str = "http"
    coordinators: tuple[str, ...] = ()
    token_file: str = ""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    tls_crl: str = ""
    wait_out: Seconds = 5
    wait_idle: Seconds = 60
    answer_grace: Seconds = 5
    fresh_boot: Annotated[float, msgspec.Meta(ge=0)] = 600
    hook_timeout: Seconds = 300
    traffic_ports: tuple[int, ...] = ()
    traffic_wait: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 0
    traffic_timeout: Seconds = 300
    recheck: Seconds = 60
    reboot_command: tuple[str, ...] = ("systemctl", "reboot")
    reboot_timeout: Seconds = 300
    reboot_method: str = "reboot"
    kexec_command: tuple[str, ...] = ("systemctl", "kexec")
    kexec_loaded_file: str = "/sys/kernel/kexec_loaded"
    soft_reboot_command: tuple[str, ...] = ("systemctl", "soft-reboot")
    custom_command: tuple[str, ...] = ()
    userspace_command: tuple[str, ...] = ()
    crash_dirs: tuple[str, ...] = ("/sys/fs/pstore", "/var/lib/systemd/pstore")
    target: str = ""
    on_unreachable: str = "stay-out"
    inhibit: str = "auto"
    detect: tuple[str, ...] = ("auto",)
    detect_every: Seconds = 60
    detect_tools_every: Seconds = 600
    reboot_required_file: str = "/run/reboot-required"
    kernel_dirs: tuple[str, ...] = ("/boot", "/lib/modules")
    detect_command: tuple[str, ...] = ()
    detect_timeout: Seconds = 30
    textfile: str = ""

    @property
    def tls(self) -> TlsFiles:
        """The files of TLS; off without ``tls_ca``."""
        return TlsFiles(ca=self.tls_ca, cert=self.tls_cert, key=self.tls_key, crl=self.tls_crl)

    @property
    def spoken(self) -> str:
        """``https`` or ``http``: what coordinators that discovery names speak."""
        return "https" if self.tls.on else self.scheme

    @property
    def journal(self) -> Path:
        """Where the journal is."""
        return Path(self.state_dir) / "journal.json"

    @property
    def state_file(self) -> Path:
        """Where the state file is, which ``rebootd agent status`` shows."""
        return Path(self.run_dir) / "agent.json"

    @property
    def enable_after(self) -> float | None:
        """Seconds without a coordinator after which a booted host enables itself; None: never."""
        word, _, duration = self.on_unreachable.partition(" ")
        if word == "stay-out" and not duration.strip():
            return None
        if word != "enable-after":
            raise InvalidInput("on_unreachable", self.on_unreachable, "stay-out, or enable-after DURATION")
        # Imported here: difflib and its like cost a megabyte on every host, for the few that say this.
        from rebootd.core.inputs import parse_duration  # noqa: PLC0415

        return parse_duration(duration.strip(), "on_unreachable", minimum=1.0, maximum=86400.0)


_CHOICES: dict[str, tuple[str, ...]] = {
    "mark": ("agent", "catalog", "none"),
    "scheme": ("http", "https"),
    "reboot_method": METHODS,
    "inhibit": ("auto", "always", "never"),
    "detect": ("auto", "file", "kernel", "command", *TOOL_SOURCES),
}
_NEEDED = (
    *("boot_id_file", "machine_id_file", "state_dir", "run_dir", "service", "domain", "reboot_command", "dns"),
    *("kexec_command", "soft_reboot_command", "on_unreachable"),
)


def fragments(config: str | Path) -> dict[str, Any]:
    """Stage one: ``config`` and, in name order, every ``*.yaml`` in the folder ``<its stem>.d`` beside it.

    Later files win, field by field. A missing file is an empty fragment. Raises ``InvalidInput``.
    """
    path = Path(config)
    merged: dict[str, Any] = {}
    for file in (path, *sorted(path.with_suffix(".d").glob("*.yaml"))):
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, *UNREADABLE) as error:
            raise InvalidInput(str(file), " ".join(str(error).split()), "a readable YAML file") from error
        if content is None:
            continue
        if not isinstance(content, dict):
            raise InvalidInput(str(file), content, "a mapping of settings")
        merged.update({str(name): value for name, value in content.items()})
    return merged


def inputs(environ: Mapping[str, str], flags: Mapping[str, object], sets: Iterable[str] = ()) -> dict[str, Any]:
    """Stage two: ``REBOOTD_AGENT_<FIELD>``, then ``--set field=value``, then flags that were given (not None).

    Values from the environment and of ``--set`` are read as YAML, so lists and maps can be written inline. An unknown
    variable with the prefix is an error, as a misspelled field would be.
    """
    found: dict[str, Any] = {}
    for variable, text in sorted(environ.items()):
        if variable.startswith(ENV_PREFIX):
            found[variable.removeprefix(ENV_PREFIX).lower()] = _value(variable, text)
    for item in sets:
        field, separator, text = item.partition("=")
        if not separator:
            raise InvalidInput("--set", item, "field=value")
        found[field.strip()] = _value(field, text)
    found.update({name: value for name, value in flags.items() if value is not None})
    return found


def validate(values: Mapping[str, Any]) -> AgentSettings:
    """Stage three: the settings, or ``InvalidInput`` with field, value and what is accepted."""
    hints = get_type_hints(AgentSettings, include_extras=True)
    checked: dict[str, Any] = {}
    for field, value in values.items():
        if field not in hints:
            raise InvalidInput(field, value, f"one of the settings {', '.join(sorted(hints))}")
        checked[field] = _convert(field, value, hints[field])
    for field, accepted in _CHOICES.items():
        chosen = checked.get(field)
        for one in chosen if isinstance(chosen, tuple) else (chosen,):
            if one is not None and one not in accepted:
                raise InvalidInput(field, one, f"one of {', '.join(accepted)}")
    for field in _NEEDED:
        if field in checked and not checked[field]:
            raise InvalidInput(field, values[field], "a value that is not empty")
    settings = AgentSettings(**checked)
    _cross_check(settings)
    return settings


def load(
    config: str | Path, environ: Mapping[str, str], flags: Mapping[str, object], sets: Iterable[str] = ()
) -> AgentSettings:
    """All three stages. Raises ``InvalidInput``; an explicitly named config file has to exist."""
    if str(config) != DEFAULT_CONFIG and not Path(config).is_file():
        raise InvalidInput("config", str(config), "an existing file")
    return validate(fragments(config) | inputs(environ, flags, sets))


def _cross_check(settings: AgentSettings) -> None:
    for field in ("name", "rack", "chassis"):
        value = getattr(settings, field)
        if value and not _NAME.fullmatch(value):
            raise InvalidInput(field, value, NAME_ACCEPTED)
    for server in settings.dns:
        if server != "system":
            split_server(server)
    for url in settings.coordinators:
        if not re.fullmatch(r"https?://[^/?#@\s]+", url.rstrip("/")):
            raise InvalidInput("coordinators", url, "URLs such as http://10.0.0.1:8473")
        if settings.tls.on and not url.startswith("https://"):
            raise InvalidInput("coordinators", url, "https:// URLs, since tls_ca is given")
    if settings.tls.on:
        settings.tls.check(tls_setting)
    _check_traffic(settings)
    if "command" in settings.detect and not settings.detect_command:
        raise InvalidInput("detect_command", "", "a command, since detect names 'command'")
    if settings.reboot_method == "custom" and not settings.custom_command:
        raise InvalidInput("custom_command", "", "a command, since reboot_method is 'custom'")
    if settings.target and not re.fullmatch(r"[A-Za-z0-9:_.@\\-]+\.(target|service)", settings.target):
        raise InvalidInput("target", settings.target, "the name of a target or service of systemd")
    # Read once here, so that a bad duration is told at the start.
    _ = settings.enable_after


def tls_setting(name: str) -> str:
    """The setting of ``ca``, ``cert``, ``key`` or ``crl``."""
    return f"tls_{name}"


def _check_traffic(settings: AgentSettings) -> None:
    for port in settings.traffic_ports:
        if not 0 < port < 65536:
            raise InvalidInput("traffic_ports", port, "ports from 1 to 65535")
    if settings.traffic_ports and not settings.traffic_wait:
        raise InvalidInput("traffic_wait", 0, "with traffic_ports: the seconds a load balancer takes to see the mark")


def split_server(server: str) -> tuple[str, int]:
    """Address and port of a DNS server written ``address:port`` or ``[address]:port``. Raises ``InvalidInput``."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):(\d{1,5})", server)
    if not match or not 0 < int(match[3]) < 65536:
        raise InvalidInput("dns", server, "address:port such as 127.0.0.1:8600, or system")
    return match[1] or match[2], int(match[3])


def _value(field: str, text: str) -> Any:
    try:
        return yaml.safe_load(text) if text.strip() else ""
    except UNREADABLE as error:
        raise InvalidInput(field, text, "a YAML value") from error


def _convert(field: str, value: object, hint: Any) -> Any:
    # A number written for a word (rack: 7) is meant as a word; the other way round is a mistake.
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if hint == tuple[str, ...] and isinstance(value, str):
        value = value.split()
    if hint == dict[str, str] and isinstance(value, dict):
        value = {str(k): str(v) if isinstance(v, int | float) else v for k, v in value.items()}
    try:
        return msgspec.convert(value, hint)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise InvalidInput(field, value, _accepted(hint, str(error))) from error


def _accepted(hint: Any, error: str) -> str:
    if hint is str:
        return "a text"
    if hint == tuple[int, ...]:
        return "a list of numbers"
    if hint == tuple[str, ...]:
        return "a list of texts"
    if hint == dict[str, str]:
        return "a map of texts"
    return f"a number of seconds ({error})"
