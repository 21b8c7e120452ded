"""scripts/rlhfd-fetch-libtorch: where libtorch is put, and that it is there whole or not at all."""

import contextlib
import importlib.machinery
import importlib.util
import io
import shutil
import sys
import tempfile
import unittest
import zipfile
from pathlib import Path
from unittest import mock

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.dont_write_bytecode = True


def load(path):
    loader = importlib.machinery.SourceFileLoader("rlhfd_fetch_libtorch", str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


class Fetch(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        # As it is installed: nothing of the project is near.
        prefix = self.folder / "usr"
        (prefix / "bin").mkdir(parents=True)
        pins = prefix / "share" / "rlhfd" / "libtorch"
        pins.mkdir(parents=True)
        shutil.copy(SCRIPTS / "rlhfd-fetch-libtorch", prefix / "bin")
        for file in SCRIPTS.glob("libtorch-*.txt"):
            shutil.copy(file, pins)
        self.prefix = prefix
        self.fetch = load(prefix / "bin" / "rlhfd-fetch-libtorch")
        self.fetched = 0
        self.members = {"torch/lib/libtorch_cpu.so": "cpu", "torch/lib/libc10.so": "c10",
                        "torch/lib/libtorch_cuda.so": "cuda", "torch/include/torch.h": "header",
                        "torch-2.11.0.dist-info/LICENSE": "free"}

    def download(self, part, flavour, arch):
        """In pip's place: one wheel."""
        self.fetched += 1
        self.fetch.pins(flavour, arch)
        (part / "wheels").mkdir()
        with zipfile.ZipFile(part / "wheels" / "torch.whl", "w") as wheel:
            for name, text in self.members.items():
                wheel.writestr(name, text)

    def run_fetch(self, *words, home="home"):
        env = {"HOME": str(self.folder / home), "XDG_CONFIG_HOME": ""}
        with mock.patch.object(self.fetch, "download", self.download), \
                mock.patch.object(self.fetch, "FREE_MIB", {"cpu": 0, "cuda": 0}), \
                mock.patch.object(self.fetch, "architecture", lambda: "x86_64"), \
                mock.patch.object(self.fetch, "gpu_found", lambda: False), \
                mock.patch.dict("os.environ", env), contextlib.redirect_stdout(io.StringIO()) as told:
            self.fetch.main([str(word) for word in words])
        return told.getvalue()

    def files(self, folder):
        return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())

    CPU = ["lib/libc10.so", "lib/libtorch_cpu.so", "licences/torch/LICENSE", "rlhfd-setup.json"]

    def test_it_comes_beside_the_installed_programs_without_headers_and_once(self):
        home = self.folder / "home" / ".config" / "rlhfd"
        home.mkdir(parents=True)
        (home / "rlhfd.toml").write_text("[run]\nseed = 1\n")
        target = self.prefix / "lib" / "rlhfd" / "libtorch"
        self.run_fetch()
        self.assertEqual(self.files(target), self.CPU)
        self.assertEqual([p.name for p in target.parent.iterdir()], ["libtorch"])
        self.assertIn("is there", self.run_fetch())
        self.assertEqual(self.fetched, 1)
        # The other flavour takes its place.
        self.run_fetch("--cuda")
        self.assertIn("lib/libtorch_cuda.so", self.files(target))
        self.assertEqual([p.name for p in target.parent.iterdir()], ["libtorch"])

    @unittest.skipUnless(importlib.util.find_spec("tomllib"), "this Python reads no TOML")
    def test_it_comes_where_the_configuration_or_the_command_line_says(self):
        config = self.folder / "etc" / "rlhfd.toml"
        config.parent.mkdir()
        config.write_text('[worker]\nlibtorch = "torch/here" # ours\n')
        self.run_fetch("--config", config)
        self.assertEqual(self.files(config.parent / "torch" / "here"), self.CPU)
        self.run_fetch("--config", config, "--to", self.folder / "there")
        self.assertEqual(self.files(self.folder / "there"), self.CPU)
        config.write_text('[worker\nlibtorch = 1')
        with self.assertRaisesRegex(self.fetch.Stop, "no sound TOML"):
            self.run_fetch("--config", config)
        with self.assertRaisesRegex(self.fetch.Stop, "cannot be read"):
            self.run_fetch("--config", self.folder / "nowhere.toml")

    def test_what_is_there_stays_until_the_new_one_is_whole(self):
        target = self.folder / "torch"
        self.run_fetch("--to", target)
        del self.members["torch/lib/libc10.so"]
        with self.assertRaisesRegex(self.fetch.Stop, "holds no lib/libc10.so"):
            self.run_fetch("--to", target, "--cuda")
        self.assertEqual(self.files(target), self.CPU)

    def test_a_folder_of_somebody_else_is_left_alone(self):
        target = self.folder / "own"
        target.mkdir()
        (target / "precious").write_text("mine")
        with self.assertRaisesRegex(self.fetch.Stop, "did not make"):
            self.run_fetch("--to", target)
        self.assertEqual(self.files(target), ["precious"])
        self.assertEqual(self.fetched, 0)

    def test_what_it_cannot_do_is_told_with_a_way_out(self):
        for words, told in ((["--gpu"], "usage"), (["--to"], "usage"), (["--cpu", "--cuda"], "usage"),
                            (["--to", "/dev/null/below"], "sudo")):
            with self.assertRaisesRegex(self.fetch.Stop, told):
                self.run_fetch(*words)
        for file in (self.prefix / "share" / "rlhfd" / "libtorch").iterdir():
            file.unlink()
        with self.assertRaisesRegex(self.fetch.Stop, "install rlhfd again"):
            self.run_fetch("--to", self.folder / "torch")


if __name__ == "__main__":
    unittest.main()
