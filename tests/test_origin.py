import re
import subprocess

from cellfuse import origin


def test_the_commit_is_of_this_package_s_repository_only(tmp_path, monkeypatch):
    package = tmp_path / "site" / "cellfuse"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(origin, "__file__", str(package / "__init__.py"))
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "theirs").write_text("")
    subprocess.run([*git, "add", "theirs"], check=True)
    subprocess.run([*git, "commit", "-qm", "theirs"], check=True)
    assert origin.commit() is None
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "ours"], check=True)
    assert re.fullmatch("[0-9a-f]{12}", origin.commit() or "")
    (tmp_path / "theirs").write_text("changed")
    assert (origin.commit() or "").endswith("-dirty")


def test_the_processor_has_a_name():
    assert origin.processor()
