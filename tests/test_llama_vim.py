"""llama.vim in real editors, against this server: type a line, see the ghost text, press Tab.

Needs the plugin's folder in EDGESPEC_LLAMA_VIM (https://github.com/ggml-org/llama.vim), curl, and vim or nvim.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edgespec.pipeline import Pipeline
from tests.fake_server import on_a_port, service_of

PLUGIN = os.environ.get("EDGESPEC_LLAMA_VIM", "")
PATIENCE_S = 120
PROGRAM = "def area(width, height):\n    return width * height\n\n\ndef volume(width, height, depth):\n"
RC = r"""
set nocompatible noswapfile encoding=utf-8 viminfo= shortmess+=I noautoindent
filetype plugin indent off
set runtimepath^=PLUGIN
let g:llama_config = {'endpoint_fim': 'URL/infill', 'show_info': 0, 't_max_predict_ms': 60000, 'ring_n_chunks': 0}
func! Ghost()
  if has('nvim')
    let l:texts = []
    for l:mark in nvim_buf_get_extmarks(0, -1, 0, -1, {'details': v:true})
      let l:more = get(l:mark[3], 'virt_text', [])
      call extend(l:texts, map(copy(l:more), {_, part -> part[0]}))
    endfor
    return join(l:texts, '')
  endif
  let l:row = screenpos(0, line('.'), 1).row
  let l:shown = join(map(range(1, &columns), {_, column -> screenstring(l:row, column)}), '')
  return matchstr(l:shown[len(getline('.')):], '^.\{-}\ze\s*$')
endfunc
func! Look(timer)
  let l:text = Ghost()
  if l:text !=# ''
    call timer_stop(a:timer)
    call writefile([l:text], 'SEEN')
  endif
endfunc
func! Begin(timer)
  call cursor(line('$'), 1)
  call feedkeys("o    ret", 'n')
  call timer_start(200, 'Look', {'repeat': -1})
endfunc
autocmd VimEnter * call timer_start(500, 'Begin')
"""


def editors() -> list[str]:
    """Those installed that the plugin runs in: it refuses Vim before 9.1."""
    found = ["nvim"] if shutil.which("nvim") else []
    if shutil.which("vim"):
        first = subprocess.run(["vim", "--version"], capture_output=True, text=True).stdout.split("\n")[0]
        version = re.search(r"(\d+)\.(\d+)", first)
        found += ["vim"] if version and tuple(map(int, version.groups())) >= (9, 1) else []
    return found


@pytest.mark.slow
@pytest.mark.skipif(not (PLUGIN and shutil.which("curl")), reason="EDGESPEC_LLAMA_VIM names no folder, or no curl")
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("editor", editors())
def test_ghost_text_appears_and_tab_takes_it(pipeline: Pipeline, tmp_path: Path, editor: str) -> None:
    with on_a_port(service_of(pipeline)) as url:
        shown, text = write_with(editor, tmp_path, url)
    expected = pipeline.infill(f"{PROGRAM}    ret", "\n", max_new_tokens=128).text
    assert shown and expected.startswith(shown.split("\n")[0])
    assert text.startswith(f"{PROGRAM}    ret{shown}")


def write_with(editor: str, folder: Path, url: str) -> tuple[str, str]:
    """The ghost text that an editor showed, and the file after Tab."""
    import pty

    seen, file, rc = folder / "seen", folder / "shapes.py", folder / "rc.vim"
    file.write_text(PROGRAM)
    rc.write_text(RC.replace("PLUGIN", PLUGIN).replace("URL", url).replace("SEEN", str(seen)))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [editor, "-u", str(rc), "-i", "NONE", str(file)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "LINES": "40", "COLUMNS": "120"},
    )
    os.close(theirs)
    screen: list[bytes] = []
    threading.Thread(target=_drain, args=(ours, screen), daemon=True).start()
    try:
        until = time.monotonic() + PATIENCE_S
        while not seen.exists() and time.monotonic() < until and process.poll() is None:
            time.sleep(0.1)
        assert seen.exists(), f"no ghost text; the screen was {b''.join(screen)[-2000:]!r}"
        time.sleep(0.3)
        os.write(ours, b"\t")
        time.sleep(0.5)
        os.write(ours, b"\x1b:wq!\r")
        process.wait(20)
    finally:
        process.kill()
        os.close(ours)
    return seen.read_text().removesuffix("\n"), file.read_text()


def _drain(terminal: int, into: list[bytes]) -> None:
    try:
        while data := os.read(terminal, 4096):
            into.append(data)
    except OSError:
        pass


if __name__ == "__main__":  # by hand: python -m tests.test_llama_vim vim http://127.0.0.1:8012
    from tempfile import mkdtemp

    print(json.dumps(write_with(sys.argv[1], Path(mkdtemp()), sys.argv[2]), indent=1))
