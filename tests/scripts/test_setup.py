"""scripts/setup: what is taken out of the wheels for a build, and what it says where it cannot work."""

import importlib.machinery
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.dont_write_bytecode = True


def load():
    loader = importlib.machinery.SourceFileLoader("rlhfd_setup", str(ROOT / "scripts" / "setup"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


setup = load()


class Members(unittest.TestCase):
    def place(self, member, flavour="cpu"):
        place = setup.fetch.place_of(member, flavour)
        return None if place is None else str(place)

    def test_the_cpu_install_takes_what_libtorch_cpu_needs(self):
        for member, place in {
            "torch/include/torch/csrc/api/include/torch/torch.h": "include/torch/csrc/api/include/torch/torch.h",
            "torch/lib/libtorch_cpu.so": "lib/libtorch_cpu.so",
            "torch/lib/libgomp.so.1": "lib/libgomp.so.1",
            "torch/lib/libarm_compute.so": "lib/libarm_compute.so",
            "nvidia/cu13/lib/libcudart.so.13": "lib/libcudart.so.13",
            "nvidia/cu13/lib/libcupti.so.13": "lib/libcupti.so.13",
            "torch-2.11.0.dist-info/LICENSE": "licences/torch/LICENSE",
        }.items():
            self.assertEqual(self.place(member), place)

    def test_the_cpu_install_leaves_cuda_and_python_out(self):
        for member in ("torch/lib/libtorch.so", "torch/lib/libtorch_cuda.so", "torch/lib/libtorch_python.so",
                       "torch/lib/libc10_cuda.so", "torch/_C.cpython-312-x86_64-linux-gnu.so",
                       "torch/nn/modules/linear.py", "torch/lib/", "nvidia/cu13/lib/libnvperf_host.so",
                       "nvidia/cu13/include/cuda.h"):
            self.assertIsNone(self.place(member), member)

    def test_the_cuda_install_gathers_all_libraries_in_one_folder(self):
        for member in ("torch/lib/libtorch.so", "torch/lib/libtorch_cuda.so", "nvidia/cudnn/lib/libcudnn.so.9",
                       "nvidia/cu13/lib/libcublas.so.13"):
            self.assertEqual(self.place(member, "cuda"), f"lib/{member.rsplit('/', 1)[1]}")
        self.assertIsNone(self.place("torch/lib/libtorch_python.so", "cuda"))


class Pins(unittest.TestCase):
    def test_every_pin_names_one_version_and_one_hash(self):
        line = re.compile(r"^[a-z0-9-]+==[0-9.]+ --hash=sha256:[0-9a-f]{64}$")
        for arch in setup.fetch.ARCHITECTURES:
            names = {}
            for file in setup.fetch.pins("cuda", arch):
                for text in file.read_text().splitlines():
                    if not text.startswith("#"):
                        self.assertRegex(text, line)
                        name, version = text.split(" ")[0].split("==")
                        self.assertNotIn(name, names)
                        names[name] = version
            self.assertEqual(names["torch"], setup.VERSION)
            self.assertEqual(len(names), 16)


class Words(unittest.TestCase):
    def test_elsewhere_it_says_where_it_works(self):
        with mock.patch("platform.system", return_value="Darwin"):
            with self.assertRaisesRegex(setup.Stop, "Linux on x86_64 and aarch64"):
                setup.fetch.architecture()
        with mock.patch("platform.machine", return_value="riscv64"):
            with self.assertRaisesRegex(setup.Stop, "riscv64"):
                setup.fetch.architecture()
        with mock.patch("platform.libc_ver", return_value=("glibc", "2.17")), \
                mock.patch("platform.system", return_value="Linux"), \
                mock.patch("platform.machine", return_value="x86_64"):
            with self.assertRaisesRegex(setup.Stop, "glibc 2.28"):
                setup.fetch.architecture()

    def test_a_libtorch_of_the_users_own_must_be_one(self):
        with tempfile.TemporaryDirectory() as folder:
            with self.assertRaisesRegex(setup.Stop, "include is not there"):
                setup.link_users_own(folder)
            root = Path(folder)
            (root / "include").mkdir()
            (root / "lib").mkdir()
            (root / "lib" / "libtorch_cpu.so").touch()
            (root / "build-version").write_text("2.5.1+cpu\n")
            with self.assertRaisesRegex(setup.Stop, "2.5.1.*needs 2.11.0"):
                setup.link_users_own(folder)
            (root / "build-version").write_text("2.11.0+cpu\n")
            target = root / "link"
            with mock.patch.object(setup, "TARGET", target), mock.patch.object(setup, "say"):
                self.assertTrue(setup.link_users_own(folder))
                self.assertTrue((target / "lib" / "libtorch_cpu.so").exists())

    def test_unknown_arguments_are_told(self):
        done = subprocess.run([sys.executable, str(ROOT / "scripts" / "setup"), "--gpu"], capture_output=True,
                              text=True, env={k: v for k, v in os.environ.items() if k != "LIBTORCH"})
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("usage", done.stderr)


if __name__ == "__main__":
    unittest.main()
