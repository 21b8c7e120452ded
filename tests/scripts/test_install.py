"""scripts/install: what is put where, and that nothing of the user's is lost."""

import os
import stat
import subprocess
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("rlhfd", "rlhfctl", "rlhfd-worker", "rlhfd-worker-torch")


class Install(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.tree = self.folder / "tree"
        self.home = self.folder / "home"
        self.programs = self.folder / "programs"
        self.programs.mkdir()
        for name in PROGRAMS:
            program = self.programs / name
            program.write_text("#!/bin/sh\n")
            program.chmod(0o755)
        library = self.folder / "libtorch" / "lib"
        library.mkdir(parents=True)
        (library / "libtorch_cpu.so").write_text("")
        self.pages = self.folder / "pages"
        for name in ("rlhfd", "rlhfctl", "rlhfd-worker"):
            for page in (f"man/{name}.1", f"man/{name}-verb.1", f"completions/{name}.bash",
                         f"completions/_{name}", f"completions/{name}.fish"):
                (self.pages / page).parent.mkdir(parents=True, exist_ok=True)
                (self.pages / page).write_text("")

    def install(self, *words, prefix="/usr", **variables):
        env = dict(os.environ, PREFIX=str(prefix), DESTDIR=str(self.tree), HOME=str(self.home),
                   PROGRAMS=str(self.programs), PAGES=str(self.pages),
                   LIBTORCH=str(self.folder / "libtorch"))
        env.update(variables)
        env.pop("XDG_CONFIG_HOME", None)
        return subprocess.run([ROOT / "scripts" / "install", *words], env=env,
                              capture_output=True, text=True, check=False)

    def files(self):
        found = (path for path in self.tree.rglob("*") if path.is_file())
        return {str(path.relative_to(self.tree)) for path in found}

    def test_a_system_tree_holds_programs_libtorch_units_and_a_configuration(self):
        done = self.install()
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        files = self.files()
        for name in ("usr/bin/rlhfd", "usr/bin/rlhfctl", "usr/bin/rlhfd-worker",
                     "usr/lib/rlhfd/rlhfd-worker-torch", "usr/lib/rlhfd/libtorch/lib/libtorch_cpu.so",
                     "usr/lib/systemd/system/rlhfd.service", "usr/lib/systemd/system/rlhfd.socket",
                     "usr/lib/systemd/system/rlhfd-read.socket", "usr/lib/sysusers.d/rlhfd.conf",
                     "usr/lib/tmpfiles.d/rlhfd.conf", "usr/share/rlhfd/drop-ins/network.conf",
                     "usr/share/rlhfd/configs/llama3-8b.toml", "etc/rlhfd/rlhfd.toml",
                     "usr/bin/rlhfd-fetch-libtorch", "usr/share/rlhfd/libtorch/libtorch-x86_64.txt",
                     "usr/share/man/man1/rlhfd.1", "usr/share/man/man1/rlhfctl-verb.1",
                     "usr/share/man/man1/rlhfd-fetch-libtorch.1",
                     "usr/share/bash-completion/completions/rlhfctl",
                     "usr/share/fish/vendor_completions.d/rlhfd-worker.fish"):
            self.assertIn(name, files)
        self.assertTrue([name for name in files if name.startswith("usr/share/zsh/")])
        self.assertFalse([name for name in files if name.endswith(".new")])
        self.assertTrue((self.tree / "usr/bin/rlhfd").stat().st_mode & stat.S_IXOTH)
        # The daemon's user reads it.
        self.assertEqual(stat.S_IMODE((self.tree / "etc/rlhfd/rlhfd.toml").stat().st_mode), 0o644)

    def test_units_start_the_programs_where_they_were_put(self):
        for prefix, start in {"/usr": "/usr/bin/rlhfd", "/opt/x": "/opt/x/bin/rlhfd"}.items():
            self.assertEqual(self.install(prefix=prefix).returncode, 0)
            unit = self.tree / prefix.lstrip("/") / "lib/systemd/system/rlhfd.service"
            self.assertIn(f"ExecStart={start} run --config /etc/rlhfd/rlhfd.toml\n", unit.read_text())

    def test_below_home_it_is_a_service_of_the_user(self):
        prefix = self.home / ".local"
        done = self.install(prefix=prefix, DESTDIR="")
        self.assertEqual(done.returncode, 0, done.stderr)
        unit = self.home / ".config/systemd/user/rlhfd.service"
        self.assertIn(f"ExecStart={prefix}/bin/rlhfd run --config %E/rlhfd/rlhfd.toml", unit.read_text())
        self.assertTrue((self.home / ".config/rlhfd/rlhfd.toml").exists())
        self.assertFalse((prefix / "lib/sysusers.d").exists())

    def test_a_second_time_keeps_the_configuration_and_removal_leaves_nothing_else(self):
        self.install()
        config = self.tree / "etc/rlhfd/rlhfd.toml"
        config.write_text("mine")
        self.assertEqual(self.install().returncode, 0)
        self.assertEqual(config.read_text(), "mine")
        self.assertEqual(self.install("--remove").returncode, 0)
        self.assertEqual(self.files(), {"etc/rlhfd/rlhfd.toml"})

    def test_libtorch_may_be_left_to_be_fetched(self):
        self.assertEqual(self.install(LIBTORCH="none").returncode, 0)
        self.assertFalse([name for name in self.files() if "libtorch_cpu" in name])

    def test_what_is_missing_or_wrong_is_told_before_anything_is_copied(self):
        (self.programs / "rlhfctl").unlink()
        for done, told in (
            (self.install(), "make build"),
            (self.install(prefix="usr"), "whole path"),
            (self.install("--now"), "usage"),
            (self.install(PROGRAMS="/bin"), "make build"),
        ):
            self.assertEqual(done.returncode, 1)
            self.assertIn(told, done.stderr)
        self.assertFalse(self.tree.exists())


if __name__ == "__main__":
    unittest.main()
