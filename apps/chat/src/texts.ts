/** All words of the page, in each of its languages. */

const EN = {
  newChat: "New chat", search: "Search chats", chats: "Chats", noChats: "No chats yet.", nothingFound: "Nothing found.",
  question: "Message", ask: "Ask anything", send: "Send", stop: "Stop", attach: "Attach text files", remove: "Remove {0}",
  you: "You", model: "Model", table: "Table", picture: "picture", code: "Code", copyCode: "Copy code", copy: "Copy",
  edit: "Edit", again: "Write again", save: "Save", saveAsk: "Save and ask", cancel: "Cancel", older: "Earlier version",
  newer: "Later version", version: "{0} of {1}", drafts: "Show who drafted", noDrafts: "Hide who drafted",
  rename: "Rename", pin: "Pin", unpin: "Unpin", pinned: "pinned", delete: "Delete", deleted: "“{0}” is deleted.", undo: "Undo",
  options: "Options of this chat", more: "More", title: "Title", system: "Instructions for the model", temperature: "Temperature (0: the likeliest words)",
  topP: "Top-p", maxTokens: "Longest answer in tokens (empty: as long as there is room)", seed: "Seed (empty: by chance)",
  exportMarkdown: "Export as Markdown", exportChat: "Export as JSONL", exportAll: "Export all chats", import: "Import chats",
  imported: "{0} chats were imported.", settings: "Settings", language: "Language", theme: "Colours", auto: "As the system",
  light: "Light", dark: "Dark", contrast: "High contrast", menu: "Show or hide chats", exact: "exact",
  exactWhy: "Drafting changes no token: the text is what the model alone would write.", loading: "The model is being loaded …",
  reading: "Reading {0} of {1} tokens …", writing: "The model writes …", stopped: "Stopped.", cutOff: "The answer was cut off here.",
  lengthEnd: "The answer reached its longest length.", edited: "Edited by you.", failed: "No answer: {0}", gone: "The server does not answer. Trying again …",
  back: "The server answers again.", speed: "{0} tokens a second", accepted: "{0} % of drafts accepted", faster: "{0} times as fast as without drafts",
  why: "Why this speed", context: "Context", contextUse: "{0} of {1} tokens of context", local: "Everything stays on this machine.",
  drafter: "drafted by {0}", tooLarge: "{0} is too large: at most 1 MB of text.", notText: "{0} is not a text file.",
  skip: "Go to the message", first: "Write a message. The model runs on this machine.", close: "Close", answerOf: "Answer of the model",
  models: "Models", licence: "Licence", size: "Size", memory: "Memory", speedHere: "Speed here", here: "On this machine", download: "Download",
  pause: "Pause", resume: "Go on", fromMirror: "Same file from the Python package index", downloadOf: "Download of {0}", downloaded: "{0} % · {1} of {2}",
  ownDraft: "brings its draft", onConditions: "with conditions", research: "research only: edgespec pull --accept-licence", arrived: "{0} is here.",
  atLeast: "{0} or more", speedAbout: "about {0} tokens a second",
  estimates: "A speed with “about” is an estimate, without drafts: from the models that have answered here, by size. All others were measured here.",
  key: "API key of the server",
};

const DE: typeof EN = {
  newChat: "Neuer Chat", search: "Chats durchsuchen", chats: "Chats", noChats: "Noch keine Chats.", nothingFound: "Nichts gefunden.",
  question: "Nachricht", ask: "Frag etwas", send: "Senden", stop: "Anhalten", attach: "Textdateien anhängen", remove: "{0} entfernen",
  you: "Du", model: "Modell", table: "Tabelle", picture: "Bild", code: "Code", copyCode: "Code kopieren", copy: "Kopieren",
  edit: "Ändern", again: "Neu schreiben", save: "Sichern", saveAsk: "Sichern und fragen", cancel: "Abbrechen", older: "Frühere Fassung",
  newer: "Spätere Fassung", version: "{0} von {1}", drafts: "Zeigen, wer entwarf", noDrafts: "Entwürfe ausblenden",
  rename: "Umbenennen", pin: "Anheften", unpin: "Lösen", pinned: "angeheftet", delete: "Löschen", deleted: "„{0}“ ist gelöscht.", undo: "Zurückholen",
  options: "Einstellungen dieses Chats", more: "Mehr", title: "Titel", system: "Anweisungen an das Modell", temperature: "Temperatur (0: die wahrscheinlichsten Wörter)",
  topP: "Top-p", maxTokens: "Längste Antwort in Token (leer: so lang wie Platz ist)", seed: "Startwert (leer: zufällig)",
  exportMarkdown: "Als Markdown ausgeben", exportChat: "Als JSONL ausgeben", exportAll: "Alle Chats ausgeben", import: "Chats einlesen",
  imported: "{0} Chats wurden eingelesen.", settings: "Einstellungen", language: "Sprache", theme: "Farben", auto: "Wie das System",
  light: "Hell", dark: "Dunkel", contrast: "Hoher Kontrast", menu: "Chats zeigen oder verbergen", exact: "exakt",
  exactWhy: "Entwürfe ändern kein Token: Der Text ist der, den das Modell allein schriebe.", loading: "Das Modell wird geladen …",
  reading: "{0} von {1} Token gelesen …", writing: "Das Modell schreibt …", stopped: "Angehalten.", cutOff: "Hier brach die Antwort ab.",
  lengthEnd: "Die Antwort erreichte ihre größte Länge.", edited: "Von dir geändert.", failed: "Keine Antwort: {0}", gone: "Der Server antwortet nicht. Neuer Versuch …",
  back: "Der Server antwortet wieder.", speed: "{0} Token je Sekunde", accepted: "{0} % der Entwürfe angenommen", faster: "{0}-mal so schnell wie ohne Entwürfe",
  why: "Warum so schnell", context: "Kontext", contextUse: "{0} von {1} Token Kontext", local: "Alles bleibt auf diesem Gerät.",
  drafter: "entworfen von {0}", tooLarge: "{0} ist zu groß: höchstens 1 MB Text.", notText: "{0} ist keine Textdatei.",
  skip: "Zur Nachricht", first: "Schreib eine Nachricht. Das Modell läuft auf diesem Gerät.", close: "Schließen", answerOf: "Antwort des Modells",
  models: "Modelle", licence: "Lizenz", size: "Größe", memory: "Speicher", speedHere: "Tempo hier", here: "Auf diesem Gerät", download: "Herunterladen",
  pause: "Pause", resume: "Weiter", fromMirror: "Dieselbe Datei vom Python-Paketverzeichnis", downloadOf: "Laden von {0}", downloaded: "{0} % · {1} von {2}",
  ownDraft: "bringt Entwürfe mit", onConditions: "mit Bedingungen", research: "nur für Forschung: edgespec pull --accept-licence", arrived: "{0} ist da.",
  atLeast: "{0} oder mehr", speedAbout: "etwa {0} Token je Sekunde",
  estimates: "Ein Tempo mit „etwa“ ist geschätzt, ohne Entwürfe: nach den Modellen, die hier geantwortet haben, und der Größe. Alle anderen wurden hier gemessen.",
  key: "API-Schlüssel des Servers",
};

export const LANGUAGES = { en: "English", de: "Deutsch" } as const;
export type Language = keyof typeof LANGUAGES;
export const TABLES: Record<Language, typeof EN> = { en: EN, de: DE };
let table = EN;
let language: Language = "en";

export function setLanguage(chosen: Language): void {
  language = chosen;
  table = TABLES[chosen];
}

/** The text of a name, with its places filled. */
export function say(name: keyof typeof EN, ...values: (string | number)[]): string {
  return table[name].replace(/\{(\d)\}/g, (_, place: string) => String(values[Number(place)] ?? ""));
}

export function number(value: number, digits = 0): string {
  return value.toLocaleString(language, { maximumFractionDigits: digits, minimumFractionDigits: digits });
}

/** A size in words: "491 MB", "1.1 GB". */
export function bytes(count: number): string {
  return count >= 1e9 ? `${number(count / 1e9, 1)} GB` : `${number(count / 1e6)} MB`;
}
