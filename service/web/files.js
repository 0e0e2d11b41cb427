// Reads and writes CSV and JSONL. Rows are {text, entity?, id?}.

/** Parses CSV by RFC 4180: quoted fields may hold commas, quotes and line breaks. */
export function csvTable(content) {
  const table = [];
  let row = [];
  let value = "";
  let quoted = false;
  const text = content.replace(/^\ufeff/, "");
  for (let index = 0; index < text.length; index += 1) {
    const here = text[index];
    if (quoted) {
      if (here !== '"') value += here;
      else if (text[index + 1] === '"') { value += '"'; index += 1; } else quoted = false;
    } else if (here === '"' && value === "") quoted = true;
    else if (here === ",") { row.push(value); value = ""; } else if (here === "\n" || here === "\r") {
      if (here === "\r" && text[index + 1] === "\n") index += 1;
      row.push(value);
      table.push(row);
      row = [];
      value = "";
    } else value += here;
  }
  if (value || row.length) table.push([...row, value]);
  return table.filter((fields) => fields.length > 1 || fields[0]);
}

/** Reads the column `text` if the first line names one. Otherwise all lines are texts, in the first column. */
export function parseCsv(content) {
  const table = csvTable(content);
  const head = (table[0] ?? []).map((name) => name.trim().toLowerCase());
  const text = head.indexOf("text");
  if (text < 0) return table.map((row) => ({ text: row[0] }));
  const [entity, id] = [head.indexOf("entity"), head.indexOf("id")];
  return table.slice(1).map((row) => rowOf(row[text], row[entity], row[id]));
}

export function parseJsonl(content) {
  return content.split(/\r?\n/).filter((line) => line.trim()).map((line, index) => {
    let row;
    try {
      row = JSON.parse(line);
    } catch {
      throw new Error(`Line ${index + 1} is not JSON.`);
    }
    if (typeof row === "string") return { text: row };
    if (typeof row?.text !== "string") throw new Error(`Line ${index + 1} has no text.`);
    return rowOf(row.text, row.entity, row.id);
  });
}

function rowOf(text = "", entity = "", id = "") {
  return { text, ...(entity ? { entity: String(entity) } : {}), ...(id || id === 0 ? { id: String(id) } : {}) };
}

/** Writes CSV. A text that a spreadsheet would take for a formula gets an apostrophe in front. */
export function writeCsv(table) {
  const field = (value) => {
    const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return `${table.map((row) => row.map(field).join(",")).join("\r\n")}\r\n`;
}
