// CSV and JSONL, read and written; rows are {text, entity?, id?}.

/** RFC 4180: quoted fields may hold commas, quotes and line breaks. */
export function csvTable(content) {
  const table = [];
  let row = [];
  let value = "";
  let quoted = false;
  const text = content.replace(/^\ufeff/, "");
  for (let place = 0; place < text.length; place += 1) {
    const here = text[place];
    if (quoted) {
      if (here !== '"') value += here;
      else if (text[place + 1] === '"') { value += '"'; place += 1; } else quoted = false;
    } else if (here === '"' && value === "") quoted = true;
    else if (here === ",") { row.push(value); value = ""; } else if (here === "\n" || here === "\r") {
      if (here === "\r" && text[place + 1] === "\n") place += 1;
      row.push(value);
      table.push(row);
      row = [];
      value = "";
    } else value += here;
  }
  if (value || row.length) table.push([...row, value]);
  return table.filter((one) => one.length > 1 || one[0]);
}

/** The column `text` where the first line names one; else all lines are texts, in the first column. */
export function parseCsv(content) {
  const table = csvTable(content);
  const head = (table[0] ?? []).map((name) => name.trim().toLowerCase());
  const text = head.indexOf("text");
  if (text < 0) return table.map((row) => ({ text: row[0] }));
  const [entity, id] = [head.indexOf("entity"), head.indexOf("id")];
  return table.slice(1).map((row) => made(row[text], row[entity], row[id]));
}

export function parseJsonl(content) {
  return content.split(/\r?\n/).filter((line) => line.trim()).map((line, number) => {
    let row;
    try {
      row = JSON.parse(line);
    } catch {
      throw new Error(`Line ${number + 1} is not JSON.`);
    }
    if (typeof row === "string") return { text: row };
    if (typeof row?.text !== "string") throw new Error(`Line ${number + 1} has no text.`);
    return made(row.text, row.entity, row.id);
  });
}

function made(text = "", entity = "", id = "") {
  return { text, ...(entity ? { entity: String(entity) } : {}), ...(id || id === 0 ? { id: String(id) } : {}) };
}

/** A text that a spreadsheet would take for a formula gets an apostrophe before it. */
export function writeCsv(table) {
  const field = (value) => {
    const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return `${table.map((row) => row.map(field).join(",")).join("\r\n")}\r\n`;
}
