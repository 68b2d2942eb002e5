/** From the setting `edgespec.command` to a program that can be started.
 *
 * Windows starts no batch file without a shell. A shell would read a setting as commands, and would end without the
 * server. So the program behind the installer's batch file is started.
 */

import { readFileSync, statSync } from "node:fs";
import { win32 } from "node:path";

export interface Program {
  readonly file: string;
  /** what goes before the server's own arguments */
  readonly args: readonly string[];
}

export interface Machine {
  readonly platform: NodeJS.Platform;
  readonly environment: Readonly<Record<string, string | undefined>>;
  isFile(path: string): boolean;
  read(path: string): string;
}

export const HERE: Machine = {
  platform: process.platform,
  environment: process.env,
  isFile: (path) => {
    try {
      return statSync(path).isFile();
    } catch {
      return false; // also in a folder of PATH that this user may not read
    }
  },
  read: (path) => readFileSync(path, "utf8"),
};

/** What installer/payload/apply.py writes. */
const BATCH = /^@"%~dp0([^"%]+\.exe)" ([^"%&|<>^]*) %\*\s*$/;

/** Raises an Error for a batch file of others, and for a name that is not found: Windows would look for it in the current folder,
 * which may be one of somebody else's.
 */
export function programFor(command: string, machine: Machine): Program {
  if (machine.platform !== "win32") return { file: command, args: [] };
  const file = found(command, machine) ?? (isPath(command) ? command : undefined);
  if (file === undefined) throw new Error(`no program ${command}: install edgespec, or set edgespec.command`);
  if (!/\.(cmd|bat)$/i.test(file)) return { file, args: [] };
  const [, path, args] = BATCH.exec(machine.read(file)) ?? [];
  if (path === undefined || args === undefined)
    throw new Error(`${file} is not the batch file that edgespec's installer writes: set edgespec.command to an .exe`);
  return { file: win32.join(win32.dirname(file), path), args: args.split(" ") };
}

function isPath(command: string): boolean {
  return /[\\/]/.test(command);
}

/** In the whole paths of PATH, and where the installer puts it: it leaves PATH alone. */
function found(command: string, { environment, isFile }: Machine): string | undefined {
  const named = isPath(command);
  const folders = named ? [""] : (environment["PATH"] ?? environment["Path"] ?? "").split(";").filter((folder) => win32.isAbsolute(folder));
  const local = environment["LOCALAPPDATA"];
  if (!named && local !== undefined) folders.push(win32.join(local, "Programs", "edgespec", "bin"));
  for (const folder of folders)
    for (const ending of win32.extname(command) === "" ? [".exe", ".cmd", ".bat"] : ["", ".exe"]) {
      const path = win32.join(folder, command + ending);
      if (isFile(path)) return path;
    }
  return undefined;
}
