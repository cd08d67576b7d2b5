"""``python -m tests.e2e.box``: the box for people. ``up`` builds one and leaves it running; the rest is done to it."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.box import faults, nomad, rootfs
from tests.e2e.box.control import Box
from tests.e2e.box.desk import Desk
from tests.e2e.box.plan import PLANS, full

if TYPE_CHECKING:
    from collections.abc import Sequence

FOLDER = "/var/tmp/rebootd-box"


def main() -> int:
    """Does what the command line says; an exit code."""
    asked = _arguments()
    folder = Path(asked.folder)
    try:
        if asked.command == "rootfs":
            print(rootfs.make())
            return 0
        if asked.command == "python":
            print(".".join(map(str, rootfs.python())))
            return 0
        if asked.command == "check":
            reason = rootfs.missing()
            print(reason or "nothing is missing")
            return int(bool(reason))
        if asked.command == "up":
            return _up(folder, asked)
        return _do(Box(folder), asked)
    except FileNotFoundError:
        print(f"no box in {folder}: start one with `up`", file=sys.stderr)
    except (rootfs.NoBoxError, RuntimeError, KeyError) as error:
        print(f"box: {error}", file=sys.stderr)
    return 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="box", description="A small data center on this machine.")
    parser.add_argument("--folder", default=FOLDER, help="where the box is (default %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="say what is missing for a box here; exit code 1 if something is")
    commands.add_parser("rootfs", help="make the root file system and keep it")
    commands.add_parser("python", help="the version of its Python")
    up = commands.add_parser("up", help="build a box and start its hosts")
    up.add_argument("--size", choices=sorted(PLANS), default="small")
    up.add_argument("--one-file", type=Path, help="dist/rebootd; else this tree and its libraries")
    up.add_argument("--driver", choices=["exec", "raw_exec"], default=nomad.DRIVER, help="how Nomad runs the daemons")
    commands.add_parser("down", help="end it and remove everything")
    commands.add_parser("status", help="the hosts, their power and boots")
    enter = commands.add_parser("enter", help="a shell, or a command, in a host")
    enter.add_argument("host")
    enter.add_argument("words", nargs=argparse.REMAINDER)
    power = commands.add_parser("power", help="on, off (orderly), cut (power loss), cycle (power loss, and on again)")
    power.add_argument("host")
    power.add_argument("to", choices=["on", "off", "cut", "cycle"])
    link = commands.add_parser("link", help="plug a host's cable in (up) or pull it (down)")
    link.add_argument("host")
    link.add_argument("to", choices=["up", "down"])
    load = commands.add_parser("load", help="load on the web service, and what was lost")
    load.add_argument("--rate", type=float, default=200)
    load.add_argument("--seconds", type=float, default=30)
    ctl = commands.add_parser("ctl", help="rebootctl in the box")
    ctl.add_argument("words", nargs=argparse.REMAINDER)
    return parser.parse_args()


def _up(folder: Path, asked: argparse.Namespace) -> int:
    reason = rootfs.missing()
    if reason:
        raise rootfs.NoBoxError(reason)
    clear(folder)
    scheduled = asked.size == "full" and nomad.binary() is not None
    box = Box.build(folder, full(nomad=True) if scheduled else PLANS[asked.size](), asked.one_file)
    box.start(stay=True)
    desk = Desk(box)
    took = faults.cold_start(desk, 240, driver=asked.driver)
    ran = "Nomad runs the daemons" if scheduled else "there is no Nomad in this box"
    print(f"{ran}; seconds until {', '.join(f'{what}: {seconds:g}' for what, seconds in took.items())}")
    print(f"shell: box enter {box.plan.machines[0].name}    end: box down")
    print(f"rebootctl: box ctl status    network: {' '.join(box.within())} curl {desk.servers[0]}/v1/status")
    desk.close()
    return 0


def clear(folder: Path) -> None:
    """Removes what is left of a box that has ended. Raises ``NoBoxError`` for one that runs."""
    if not folder.exists():
        return
    with suppress(FileNotFoundError):
        if Box(folder).running():
            raise rootfs.NoBoxError(f"there is a box in {folder} already: `python -m tests.e2e.box down` ends it")
    shutil.rmtree(folder)


def _do(box: Box, asked: argparse.Namespace) -> int:
    match asked.command:
        case "down":
            box.stop()
            shutil.rmtree(box.folder)
        case "status":
            for host in box.plan.hosts:
                told = box.told(host.name)
                power = "on " if told["on"] else "off"
                exits = " ".join(map(str, box.exits().get(host.name, [])))
                boots = len(box.boot_ids(host.name))
                print(f"{host.name:6} {host.rack:4} {host.address:12} {power} boots {boots} exits {exits}")
        case "enter":
            _enter(box, asked.host, asked.words or ["bash"])
        case "power":
            orders = {"on": ("on", {}), "off": ("off", {}), "cut": ("cut", {}), "cycle": ("cut", {"again": True})}
            order, more = orders[asked.to]
            box.order(order, asked.host, **more)
        case "link":
            box.order("link", asked.host, up=asked.to == "up")
        case "load":
            print(Desk(box).load_for(asked.seconds, asked.rate))
        case "ctl":
            print(Desk(box).rebootctl(*asked.words, check=False), end="")
    return 0


def _enter(box: Box, host: str, words: Sequence[str]) -> None:
    leader = box.told(host)["leader"]
    if leader is None:
        raise RuntimeError(f"{host} is off")
    inside = ["nsenter", "-t", str(leader), "-m", "-u", "-i", "-n", "-p", "-C", "--", *words]
    command = [*box.within("--mount", "--net", "--pid"), *inside]
    os.execvp(command[0], command)


if __name__ == "__main__":
    raise SystemExit(main())
