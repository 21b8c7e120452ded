"""A throw-away Debian with a real systemd as its process 1: systemd-nspawn on an overlay.

The tree is made once by mmdebstrap from Debian's registry, into target/systemd/tree; where that cannot be
had, it is an overlay of this machine's own root. What is written in a run lies in memory and goes with it.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "target" / "systemd"
PACKAGES = "systemd,systemd-sysv,dbus,libpam-systemd,libstdc++6,python3"
SUITE = "bookworm"
BOOT_S = 60


class Skip(Exception):
    """Why no systemd can be booted here, and what would help."""


def say(text):
    print(text, flush=True)


def fetched(package, program, same_version_as=None):
    """A program of a Debian package that is only unpacked, never installed; None where it is not to be had."""
    here = shutil.which(program)
    if here:
        return here
    unpacked = PLACE / "tools" / "usr" / "bin" / program
    if unpacked.exists():
        return str(unpacked)
    if not shutil.which("apt-get"):
        return None
    say(f"      {program} is not installed: {package} is fetched from Debian's registry into {PLACE}")
    wanted = package
    if same_version_as:
        asked = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", same_version_as],
                               capture_output=True, text=True)
        wanted = f"{package}={asked.stdout}" if asked.returncode == 0 else package
    archives = PLACE / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        got = subprocess.run(["apt-get", "download", "-q", wanted], cwd=archives, capture_output=True)
        if got.returncode == 0:
            break
        subprocess.run(["apt-get", "update", "-q"], capture_output=True)
    for archive in archives.glob(f"{package}_*.deb"):
        subprocess.run(["dpkg-deb", "-x", archive, PLACE / "tools"], check=True)
    return str(unpacked) if unpacked.exists() else None


def debian_tree():
    """A minimal Debian of its own; None where it cannot be made."""
    tree = PLACE / "tree"
    if tree.exists():
        return tree
    program = fetched("mmdebstrap", "mmdebstrap")
    if not program:
        return None
    say(f"      making a minimal Debian ({SUITE}) in {tree}")
    part = PLACE / "tree.part"
    shutil.rmtree(part, ignore_errors=True)
    command = ["perl", program, "--quiet", "--variant=essential", f"--include={PACKAGES}",
               "--dpkgopt=force-unsafe-io", SUITE, part]
    with open(PLACE / "mmdebstrap.log", "w") as log:
        if subprocess.run(command, stdout=log, stderr=log).returncode != 0:
            shutil.rmtree(part, ignore_errors=True)
            return None
    part.rename(tree)
    return tree


def cgroups():
    """The control groups there are, in every hierarchy."""
    return {folder for folder, _, _ in os.walk("/sys/fs/cgroup")}


class Container:
    """Booted by `with`; its processes, mounts and control groups are gone afterwards, whatever happens."""

    def __init__(self, binds):
        self.binds = binds
        self.name = f"rlhfd-{os.getpid()}"
        self.scratch = PLACE / "run"

    def __enter__(self):
        PLACE.mkdir(parents=True, exist_ok=True)
        self.nspawn = fetched("systemd-container", "systemd-nspawn", "systemd")
        if not self.nspawn:
            raise Skip("systemd-nspawn is missing (Debian: apt install systemd-container)")
        lower = debian_tree()
        if not lower:
            say("      no minimal Debian can be made: this machine's own root lies below")
            lower = Path("/")
        self.before = cgroups()
        self.scratch.mkdir(exist_ok=True)
        self.root = self.scratch / "root"
        self.process = None
        try:
            self.mount(lower)
            self.boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def mount(self, lower):
        def run(*words):
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode != 0:
                raise Skip(f"an overlay cannot be mounted: {done.stderr.strip()}")
        run("mount", "-t", "tmpfs", "none", self.scratch)
        for name in ("upper", "work", "root"):
            (self.scratch / name).mkdir()
        run("mount", "-t", "overlay", "overlay", "-o",
            f"lowerdir={lower},upperdir={self.scratch}/upper,workdir={self.scratch}/work", self.root)
        # It would keep dpkg from starting and stopping units.
        (self.root / "usr/sbin/policy-rc.d").unlink(missing_ok=True)
        (self.root / "etc/machine-id").write_text("")

    def boot(self):
        started = time.monotonic()
        binds = [f"--bind-ro={source}:{target}" for source, target in self.binds.items()]
        self.console = self.scratch / "console.log"
        with open(self.console, "w") as log:
            self.process = subprocess.Popen(
                [self.nspawn, "--quiet", "--register=no", "--keep-unit", "-M", self.name, *binds,
                 "-D", self.root, "--boot", "--console=pipe"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        while True:
            if self.process.poll() is not None or time.monotonic() - started > BOOT_S:
                told = self.console.read_text(errors="replace").strip()[-1000:]
                raise Skip(f"systemd does not boot in a container here:\n{told}")
            self.leader = self.child()
            if self.leader:
                state = self.run("systemctl", "is-system-running").stdout.strip()
                if state in ("running", "degraded"):
                    break
            time.sleep(0.1)
        version = self.run("systemctl", "--version").stdout.split("\n")[0]
        say(f"      {version} booted in {time.monotonic() - started:.1f} s")

    def child(self):
        tasks = Path(f"/proc/{self.process.pid}/task")
        try:
            words = [word for task in tasks.iterdir() for word in (task / "children").read_text().split()]
        except OSError:
            return None
        return words[0] if words else None

    def run(self, *words, user=None, timeout=90, stdin=None):
        """Runs a command in it, as root or another user."""
        as_user = ["runuser", "-u", user, "--"] if user else []
        command = ["nsenter", "-t", self.leader, "--all", "--root", "--wd", *as_user, *map(str, words)]
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=timeout,
                                  input=stdin if stdin is not None else "",
                                  env={"PATH": "/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin", "LANG": "C.UTF-8"})
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 124, "", f"not done after {timeout} s")

    def __exit__(self, *_):
        if self.process and self.process.poll() is None:
            if getattr(self, "leader", None):
                self.run("systemctl", "poweroff", timeout=20)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.terminate()
                self.process.wait(30)
        subprocess.run(["umount", "--recursive", "--lazy", self.scratch], capture_output=True)
        # Empty groups that stay behind break the next boot. Deepest first; others' are never touched.
        ours = ("payload", "supervisor", self.name, ".slice", ".scope", ".service", ".mount", ".socket")
        for folder in sorted(cgroups() - self.before, key=len, reverse=True):
            if any(word in folder for word in ours):
                try:
                    os.rmdir(folder)
                except OSError:
                    pass
        if self.scratch.exists():
            self.scratch.rmdir()
