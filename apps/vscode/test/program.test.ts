import assert from "node:assert/strict";
import { test } from "node:test";

import { HERE, programFor, type Machine } from "../src/program.js";

const INSTALLED = '@"%~dp0..\\app\\python\\python.exe" -I -m edgespec %*\r\n';
const BIN = "C:\\Users\\ü b\\AppData\\Local\\Programs\\edgespec\\bin";

function windows(files: Record<string, string>, path = "C:\\Windows;C:\\tools"): Machine {
  const environment = { Path: path, LOCALAPPDATA: "C:\\Users\\ü b\\AppData\\Local" };
  return { platform: "win32", environment, isFile: (file) => file in files, read: (file) => files[file]! };
}

test("the program behind the installer's batch file is started, without a shell", () => {
  const machine = windows({ [`${BIN}\\edgespec.cmd`]: INSTALLED });
  const expected = { file: "C:\\Users\\ü b\\AppData\\Local\\Programs\\edgespec\\app\\python\\python.exe", args: ["-I", "-m", "edgespec"] };
  assert.deepEqual(programFor("edgespec", machine), expected, "where the installer puts it, though PATH does not have it");
  assert.deepEqual(programFor(`${BIN}\\edgespec.cmd`, machine), expected);
  assert.deepEqual(programFor(`${BIN}\\edgespec`, machine), expected);
});

test("a program on PATH comes first, the first folder before the next", () => {
  const files = { "C:\\tools\\edgespec.exe": "", "C:\\venv\\edgespec.exe": "", [`${BIN}\\edgespec.cmd`]: INSTALLED };
  assert.deepEqual(programFor("edgespec", windows(files)), { file: "C:\\tools\\edgespec.exe", args: [] });
  assert.deepEqual(programFor("edgespec", windows(files, "C:\\venv;;C:\\tools")), { file: "C:\\venv\\edgespec.exe", args: [] });
});

test("a name that is not found is not started: Windows would take a program of the current folder", () => {
  const files = { "edgespec.exe": "", ".\\edgespec.exe": "", "bin\\edgespec.exe": "" };
  assert.throws(() => programFor("edgespec", windows(files, ".;;bin")), /no program edgespec.*edgespec.command/);
  assert.deepEqual(programFor("bin\\edgespec", windows(files)), { file: "bin\\edgespec.exe", args: [] }, "a path was asked for");
});

test("a batch file of others is not run: its text could be anything", () => {
  for (const text of ["@echo off\r\ncall python -m edgespec %*\r\n", '@"%~dp0a.exe" -m x & calc %*\r\n', '@"%~dp0%X%\\a.exe" -m x %*\r\n', ""])
    assert.throws(() => programFor("edgespec", windows({ "C:\\tools\\edgespec.bat": text })), /edgespec\.bat is not the batch file.*an \.exe/);
});

test("elsewhere the command is started as it is", () => {
  assert.deepEqual(programFor("/opt/a b/edgespec.cmd", { ...HERE, platform: "linux" }), { file: "/opt/a b/edgespec.cmd", args: [] });
});

test("what cannot be looked at is no program", () => {
  assert.equal(HERE.isFile(process.execPath), true);
  for (const path of ["/no/such/file", `${process.execPath}/inside`, "a\0b"]) assert.equal(HERE.isFile(path), false);
});
