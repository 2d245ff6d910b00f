"""Tests what `deploy/release` refuses and which files it writes.

The script and the versions are the real ones. Stubs take the place of the programs that build.
"""

import os
import shutil
import subprocess
import unittest
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]
REAL = [
    "Cargo.toml",
    ".github/CHANGELOG.md",
    "deploy/functions",
    "deploy/images/functions",
    "deploy/release",
    "deploy/wheel/pillion/__init__.py",
]
STUBS = {
    "bin/cargo": "exit 0",
    "deploy/setup": "exit 0",
    "deploy/bom": 'echo bom > "$1/pillion-proxy.cdx.json"',
    "deploy/wheel/build": 'echo wheel > "${@: -1}/pillion.whl"',
}
VERSION = next(line.split('"')[1] for line in (ROOT / "Cargo.toml").read_text().splitlines() if line.startswith("version = "))


class Release(unittest.TestCase):
    def setUp(self):
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.tree, self.output = Path(folder.name, "tree"), Path(folder.name, "output")
        for name in REAL:
            (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.tree / name)
        for name, body in STUBS.items():
            (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
            (self.tree / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (self.tree / name).chmod(0o755)
        self.git("init", "--quiet")
        self.commit()

    def git(self, *arguments: str):
        variables = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
        who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example"]
        subprocess.run(["git", *who, *arguments], cwd=self.tree, env=variables, check=True, timeout=60)

    def commit(self):
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "a tree")

    def change(self, name: str, old: str, new: str):
        path = self.tree / name
        text = path.read_text()
        self.assertIn(old, text)
        path.write_text(text.replace(old, new))

    def release(self, *arguments: str) -> subprocess.CompletedProcess:
        path = f"{self.tree}/bin:{os.environ['PATH']}"
        command = [self.tree / "deploy/release", "--output", self.output, *arguments]
        return subprocess.run(command, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=60)

    def refused(self, why: str, *arguments: str, code: int = 1):
        ended = self.release(*arguments)
        self.assertIn(why, ended.stderr)
        self.assertEqual(ended.returncode, code)
        self.assertFalse((self.output / "SHA256SUMS").exists())

    def test_wrong_arguments_are_refused(self):
        self.refused("unknown argument: --now", "--now", code=64)
        self.refused("--builder needs a value", "--builder", code=64)
        self.refused("exclude each other", "--builder", "debian", "--no-images", code=64)

    def test_the_tag_must_be_the_version(self):
        self.refused(f"tag it v{VERSION}", "--no-images")
        self.git("tag", "v99.0.0")
        self.refused(f"Cargo.toml says {VERSION}, and the tag is v99.0.0", "--no-images")

    def test_a_tree_with_changes_is_refused(self):
        self.git("tag", f"v{VERSION}")
        (self.tree / "new").touch()
        self.refused("the tree has changes", "--no-images")

    def test_versions_must_agree_in_a_dry_run_too(self):
        self.change("Cargo.toml", f'version = "{VERSION}"', 'version = "99.0.0"')
        self.refused("Cargo.toml says 99.0.0", "--dry-run", "--no-images")
        self.change("deploy/wheel/pillion/__init__.py", f'"{VERSION}"', '"99.0.0"')
        self.refused("the change log has no heading for 99.0.0", "--dry-run", "--no-images")

    def test_files_that_are_there_are_kept(self):
        self.output.mkdir()
        (self.output / "mine").touch()
        self.refused("is not empty", "--dry-run", "--no-images")

    def test_the_real_tree_s_versions_agree_and_the_checksums_are_right(self):
        self.git("tag", f"v{VERSION}")
        ended = self.release("--no-images")
        self.assertEqual(ended.returncode, 0, ended.stderr)
        self.assertEqual({path.name for path in self.output.iterdir()}, {"SHA256SUMS", "pillion-proxy.cdx.json", "pillion.whl"})
        check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
        self.assertEqual(subprocess.run(check, cwd=self.output, capture_output=True, timeout=60).returncode, 0)
        (self.output / "pillion.whl").write_text("another wheel")
        self.assertEqual(subprocess.run(check, cwd=self.output, capture_output=True, timeout=60).returncode, 1)

    def test_a_dry_run_needs_no_tag(self):
        (self.tree / "new").touch()
        self.assertEqual(self.release("--dry-run", "--no-images").returncode, 0)


if __name__ == "__main__":
    unittest.main()
