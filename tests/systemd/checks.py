"""What is played: install, start, queue, kill -9, watchdog, SIGTERM, crash loop, upgrade, remove, purge; then
the same programs by `make install`, as root and as a user."""

import time

from service import CONFIG, Wrong, hold

COUNTED = "SELECT count(*) FROM attempts WHERE counted = 1"
RESUMED = "SELECT count(*) FROM attempts WHERE first_step > 1"


def install(service, first, **_):
    """the package installs, makes its users, and starts nothing"""
    told = service.ok("dpkg", "-i", first)
    hold("rlhfd-fetch-libtorch" in told, f"it does not say what comes next: {told}")
    hold(service.shows("ActiveState") == "inactive", "it was started without a configuration")
    hold(service.shows("UnitFileState") == "disabled", "it was enabled")
    groups = service.ok("id", "-nG", "rlhfd").split()
    hold({"rlhfd", "rlhfd-read"} <= set(groups), f"the user rlhfd is in {groups}")
    service.ok("cat", "/etc/rlhfd/rlhfd.toml", user="rlhfd")
    for page in ("rlhfd.1", "rlhfctl-prompts-add.1", "rlhfd-worker-train-dpo.1", "rlhfd-fetch-libtorch.1"):
        service.ok("test", "-e", f"/usr/share/man/man1/{page}.gz")
    service.ok("bash", "-c", ". /usr/share/bash-completion/completions/rlhfctl && complete -p rlhfctl")


def examine(service, **_):
    """the installed programs find each other and libtorch; the unit is verified, and closed to 1.0"""
    service.ok("install", "-d", "-o", "rlhfd", "/var/lib/rlhfd/models")
    service.ok("cp", "-rT", "/probe/models", "/var/lib/rlhfd/models")
    service.ok("chown", "-R", "rlhfd:rlhfd", "/var/lib/rlhfd")
    service.ok("tee", "/etc/rlhfd/rlhfd.toml", stdin=CONFIG)
    told = service.ok("rlhfd-worker", "doctor")
    hold("/usr/lib/rlhfd/libtorch" in told, told)
    service.ok("rlhfd-worker", "score", "--help")
    told = service.ok("rlhfd-fetch-libtorch", "--help")
    hold("[worker] libtorch" in told, told)
    service.ok("rlhfd", "check", "--as-service", user="rlhfd")
    service.ok("systemd-analyze", "verify", "rlhfd.service", "rlhfd.socket", "rlhfd-read.socket")
    told = service.ok("systemd-analyze", "security", "--threshold=10", "rlhfd.service")
    hold("SAFE" in told or "OK" in told, told[-200:])


def start(service, **_):
    """it starts at once, says READY, and each group may do what it may"""
    service.ok("systemctl", "enable", "--now", "rlhfd.socket", "rlhfd-read.socket", "rlhfd.service")
    service.until_active()
    for user, group in (("steers", "rlhfd"), ("looks", "rlhfd-read"), ("nobody-else", "users")):
        service.ok("useradd", "--no-create-home", "-G", group, user)
    service.ok("rlhfctl", "status", user="steers")
    look = ("rlhfctl", "--socket", "/run/rlhfd/rlhfd-read.sock")
    service.ok(*look, "status", user="looks")
    hold(service.run(*look, "pause", user="looks").returncode == 1, "a reader may steer")
    refused = service.run("rlhfctl", "status", user="nobody-else")
    hold(refused.returncode != 0 and "group" in refused.stderr, f"to anybody it says: {refused.stderr}")
    service.ok("systemctl", "reload", "rlhfd.service")
    reloads = "SELECT count(*) FROM events WHERE kind = 'config_reloaded'"
    service.until("the reload to be told", lambda: service.number(reloads) == 1)
    service.until("a status for systemctl", lambda: service.shows("StatusText"))


def whole_iteration(service, **_):
    """prompts are queued, and an iteration runs through the real worker"""
    service.queue(20)
    service.until_ended(1)
    hold(service.sql("SELECT status FROM iteration_history WHERE iteration = 1") == "done", "not done")


def kill(service, **_):
    """kill -9 with a unit in flight: the next request is answered, and the iteration ends"""
    ended = service.ended()
    service.until_in_flight("%generate%")
    restarts, old = int(service.shows("NRestarts")), service.pid()
    service.signal("KILL", old)
    service.ok("rlhfctl", "runs", timeout=120)
    service.until_active(other_than=old)
    hold(int(service.shows("NRestarts")) == restarts + 1, "it was not systemd that started it again")
    service.until_ended(ended + 1)
    hold(service.number(COUNTED) == 0, "the kill counted against a unit")


def watchdog(service, **_):
    """a daemon that stands still is ended by the watchdog and started again"""
    drop_in = "/run/systemd/system/rlhfd.service.d/watchdog.conf"
    service.ok("mkdir", "-p", "/run/systemd/system/rlhfd.service.d")
    service.ok("tee", drop_in, stdin="[Service]\nWatchdogSec=3s\n")
    service.ok("systemctl", "daemon-reload")
    service.ok("systemctl", "restart", "rlhfd.service")
    old = service.until_active()
    time.sleep(4)
    hold(service.pid() == old, "the watchdog ends a daemon that is well")
    service.signal("STOP", old)
    service.until_active(other_than=old)
    told = service.ok("journalctl", "-u", "rlhfd.service", "-o", "cat")
    hold("Watchdog timeout" in told, "it was not the watchdog")
    service.ok("rm", drop_in)
    service.ok("systemctl", "daemon-reload")
    service.ok("systemctl", "restart", "rlhfd.service")


def stop(service, **_):
    """SIGTERM in a training: exit 0 in time, nothing is left, and the training goes on from its state"""
    ended, resumed = service.ended(), service.number(RESUMED)
    service.until_in_training(4)
    began = time.monotonic()
    service.ok("systemctl", "stop", "rlhfd.service")
    took = time.monotonic() - began
    hold(took < 45, f"the stop took {took:.0f} s")
    hold(service.shows("Result") == "success" and service.shows("ExecMainStatus") == "0",
         f"{service.shows('Result')}, exit {service.shows('ExecMainStatus')}")
    hold(not service.processes(), f"still there: {service.processes()}")
    # The socket stands: whoever asks starts it again.
    service.ok("rlhfctl", "status", timeout=120)
    service.until_active()
    service.until_ended(ended + 1)
    hold(service.number(RESUMED) > resumed, "the training began anew")
    hold(service.number(COUNTED) == 0, "the stop counted against a unit")


def wrong_configuration(service, **_):
    """a wrong configuration ends it with 78, and it is not started again and again"""
    service.ok("sh", "-c", "echo '[nonsense]' >> /etc/rlhfd/rlhfd.toml")
    service.run("systemctl", "restart", "rlhfd.service")
    service.until("the failure", lambda: service.shows("ActiveState") == "failed")
    hold(service.shows("ExecMainStatus") == "78", f"exit {service.shows('ExecMainStatus')}")
    hold(service.shows("NRestarts") == "0", "it was started again")
    service.ok("tee", "/etc/rlhfd/rlhfd.toml", stdin=CONFIG)
    service.ok("systemctl", "reset-failed", "rlhfd.service", "rlhfd.socket", "rlhfd-read.socket")
    service.ok("systemctl", "start", "rlhfd.socket", "rlhfd-read.socket", "rlhfd.service")
    service.until_active()


def crash_loop(service, **_):
    """a crash loop ends at the start limit, and reset-failed heals it"""
    for _ in range(10):
        old = service.pid()
        if old:
            service.signal("KILL", old)

        def settled():
            return service.shows("ActiveState") == "failed" or service.pid() not in (0, old)
        service.until("the next start, or the limit", settled)
        if service.shows("ActiveState") == "failed":
            break
    hold(service.shows("ActiveState") == "failed", "it is started again for ever")
    hold(service.run("rlhfctl", "status", timeout=120).returncode != 0, "somebody answers")
    service.ok("systemctl", "reset-failed", "rlhfd.service", "rlhfd.socket", "rlhfd-read.socket")
    service.ok("systemctl", "start", "rlhfd.socket", "rlhfd-read.socket", "rlhfd.service")
    service.until_active()
    service.ok("rlhfctl", "status")


def upgrade(service, second, **_):
    """an upgrade with an iteration in flight: the daemon is a new one, and the iteration goes on"""
    ended = service.ended()
    service.until_in_training(4)
    old, socket = service.pid(), service.shows("ActiveEnterTimestampMonotonic", "rlhfd.socket")
    service.ok("dpkg", "-i", second, timeout=180)
    service.until_active(other_than=old)
    version = service.ok("dpkg-query", "-W", "-f", "${Version}", "rlhfd")
    hold(version.endswith("-2"), f"version {version}")
    hold(service.shows("ActiveEnterTimestampMonotonic", "rlhfd.socket") == socket, "the socket was restarted")
    hold(service.ok("cat", "/etc/rlhfd/rlhfd.toml") == CONFIG, "the configuration was not kept")
    service.until_ended(ended + 1)
    bad = service.number("SELECT count(*) FROM iteration_history WHERE status <> 'done' AND ended_ms IS NOT NULL")
    hold(bad == 0 and service.number(COUNTED) == 0, "an iteration did not end well")
    # It exits with 1 where anything is bad.
    service.ok("rlhfctl", "doctor")


def remove(service, **_):
    """a removal stops everything and keeps state and configuration; a purge keeps the state"""
    service.ok("dpkg", "-r", "rlhfd")
    hold(not service.processes(), f"still there: {service.processes()}")
    hold(service.run("test", "-e", "/run/rlhfd/rlhfd.sock").returncode != 0, "the socket is still there")
    hold(service.run("test", "-e", "/usr/bin/rlhfd").returncode != 0, "the program is still there")
    service.ok("test", "-e", "/etc/rlhfd/rlhfd.toml")
    service.ok("umount", "/usr/lib/rlhfd/libtorch")
    service.ok("cp", "/probe/models/mark.json", "/usr/lib/rlhfd/libtorch/rlhfd-setup.json")
    service.ok("dpkg", "-P", "rlhfd")
    for gone in ("/etc/rlhfd/rlhfd.toml", "/usr/lib/rlhfd", "/usr/lib/systemd/system/rlhfd.service",
                 "/etc/systemd/system/multi-user.target.wants/rlhfd.service",
                 "/etc/systemd/system/rlhfd.service"):
        hold(service.run("test", "-e", gone).returncode != 0 and service.run("test", "-L", gone).returncode != 0,
             f"{gone} is still there")
    service.ok("test", "-e", "/var/lib/rlhfd/db/rlhfd.db")


def by_make(service, programs, **_):
    """make install serves from /usr/local, and make uninstall leaves configuration and state only"""
    install = ("env", f"PROGRAMS={programs}", "LIBTORCH=none", "/src/scripts/install")
    service.ok(*install)
    service.ok("tee", "/etc/rlhfd/rlhfd.toml", stdin=CONFIG)
    service.ok("systemctl", "enable", "--now", "rlhfd.socket", "rlhfd-read.socket", "rlhfd.service")
    service.until_active()
    service.ok("/usr/local/bin/rlhfctl", "iterations", user="steers")
    hold(service.ended() > 0, "the state that the package left is not taken up")
    service.ok(*install, "--remove")
    hold(not service.processes(), f"still there: {service.processes()}")
    left = service.ok("find", "/usr/local", "-name", "*rlhf*")
    hold(not left, f"still there: {left}")
    service.ok("test", "-e", "/etc/rlhfd/rlhfd.toml")


def own_service(service, programs, **_):
    """without root: PREFIX=~/.local is a service of systemctl --user"""
    service.ok("useradd", "--create-home", "owner")
    service.ok("loginctl", "enable-linger", "owner")
    number = service.ok("id", "-u", "owner").strip()
    bus = f"/run/user/{number}/systemd/private"
    service.until("the user's own manager", lambda: service.run("test", "-S", bus).returncode == 0)
    home = ("env", "HOME=/home/owner", f"XDG_RUNTIME_DIR=/run/user/{number}")
    install = (*home, "PREFIX=/home/owner/.local", f"PROGRAMS={programs}", "LIBTORCH=none", "/src/scripts/install")
    service.ok(*install, user="owner")
    own = CONFIG.replace("/var/lib/rlhfd/models", "/probe/models").replace("/run/rlhfd", f"/run/user/{number}")
    service.ok("tee", "/home/owner/.config/rlhfd/rlhfd.toml", stdin=own, user="owner")
    service.ok(*home, "systemctl", "--user", "enable", "--now", "rlhfd", user="owner")
    service.ok(*home, "systemctl", "--user", "is-active", "rlhfd", user="owner")
    service.ok(*home, "/home/owner/.local/bin/rlhfctl", "status", user="owner")
    service.ok(*install, "--remove", user="owner")
    hold(not service.processes(), f"still there: {service.processes()}")
    left = service.ok("find", "/home/owner", "-name", "rlhf*")
    kept = {"/home/owner/.config/rlhfd", "/home/owner/.config/rlhfd/rlhfd.toml"}
    own_state = "/home/owner/.local/state/rlhfd"
    more = {name for name in left.split() if not name.startswith(own_state)} - kept
    hold(not more, f"still there: {more}")


def play(service, name, check, packages):
    """One check as one line; whether it held."""
    began = time.monotonic()
    try:
        check(service, **packages)
    except Wrong as wrong:
        print(f"FAIL  {name}\n      {wrong}", flush=True)
        return False
    print(f"ok    {name} ({time.monotonic() - began:.1f} s)", flush=True)
    return True


CHECKS = (install, examine, start, whole_iteration, kill, watchdog, stop, wrong_configuration, crash_loop,
          upgrade, remove, by_make, own_service)
