"""systemd/: the units are right, the service is closed, and a drop-in opens one thing."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

UNITS = Path(__file__).resolve().parents[2] / "systemd"
# Exposure by `systemd-analyze security`, from 0 (closed) to 10.
CLOSED = 1.0
OPENED = 2.0
# What each drop-in may open: the network's three belong together.
OPENS = {
    "home-models": {"ProtectHome"},
    "multi-gpu": {"RestrictAddressFamilies_AF_NETLINK", "RestrictAddressFamilies_AF_INET_INET6", "IPAddressDeny"},
    "network": {"RestrictAddressFamilies_AF_INET_INET6", "PrivateNetwork", "IPAddressDeny"},
}


@unittest.skipUnless(shutil.which("systemd-analyze"), "systemd-analyze is not installed")
class Units(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def place(self, source, *drop_ins):
        """A unit beside the others, its program one that is there, with these drop-ins."""
        for unit in (*source.parent.glob("*.service"), *source.parent.glob("*.socket")):
            text = re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text())
            (self.folder / unit.name).write_text(text)
        for drop_in in drop_ins:
            below = self.folder / f"{source.name}.d"
            below.mkdir(exist_ok=True)
            shutil.copy(drop_in, below)
        return self.folder / source.name

    def analyze(self, *words):
        env = dict(os.environ, XDG_RUNTIME_DIR=str(self.folder))
        done = subprocess.run(["systemd-analyze", *words], env=env, capture_output=True, text=True,
                              check=False)
        return done.returncode, done.stdout + done.stderr

    def exposure(self, unit):
        _, told = self.analyze("security", "--offline=true", unit)
        found = re.search(r"exposure level for \S+: ([0-9.]+)", told)
        self.assertIsNotNone(found, told)
        return float(found[1])

    def findings(self, unit):
        """The exposure of each setting."""
        _, told = self.analyze("security", "--offline=true", "--json=short", unit)
        return {row["json_field"]: row["exposure"] for row in json.loads(told)}

    def test_every_unit_is_understood_without_a_word(self):
        for unit in (*UNITS.glob("*.service"), *UNITS.glob("*.socket")):
            self.assertEqual(self.analyze("verify", self.place(unit)), (0, ""), unit.name)
        user = UNITS / "user" / "rlhfd.service"
        self.assertEqual(self.analyze("--user", "verify", self.place(user)), (0, ""))

    def test_the_service_is_closed_and_each_drop_in_opens_little(self):
        service = UNITS / "rlhfd.service"
        service_alone = self.place(service)
        closed = self.exposure(service_alone)
        self.assertLessEqual(closed, CLOSED)
        drop_ins = sorted((UNITS / "drop-ins").glob("*.conf"))
        self.assertEqual([path.stem for path in drop_ins], sorted(OPENS))
        before = self.findings(service_alone)
        for drop_in in drop_ins:
            shutil.rmtree(self.folder / "rlhfd.service.d", ignore_errors=True)
            opened = self.exposure(self.place(service, drop_in))
            # That it rises at all shows that the drop-in was read.
            self.assertGreater(opened, closed, drop_in.name)
            self.assertLessEqual(opened, OPENED, drop_in.name)
            after = self.findings(self.folder / service.name)
            changed = {name for name, exposure in after.items() if exposure != before[name]}
            self.assertEqual(changed, OPENS[drop_in.stem])
            # Its lines are understood, too.
            self.assertEqual(self.analyze("verify", self.folder / service.name), (0, ""), drop_in.name)


@unittest.skipUnless(shutil.which("systemd-sysusers"), "systemd-sysusers is not installed")
class Users(unittest.TestCase):
    def test_the_user_and_both_groups_are_made(self):
        with tempfile.TemporaryDirectory() as root:
            made = subprocess.run(
                ["systemd-sysusers", "--dry-run", f"--root={root}", UNITS / "rlhfd.sysusers"],
                capture_output=True, text=True, check=True)
        told = made.stdout + made.stderr
        for line in ("Creating group 'rlhfd'", "Creating group 'rlhfd-read'", "Creating user 'rlhfd'"):
            self.assertIn(line, told)


if __name__ == "__main__":
    unittest.main()
