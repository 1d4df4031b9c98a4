-- One row for each update that has ended. The document is its report, schema lu.report/1; every other column
-- but the number is taken out of it, so a field that is new in a report is there without a migration. It
-- stands last: what lists read is then on a row's first page, however long the document is.
CREATE TABLE updates (
    number INTEGER PRIMARY KEY,
    boot_id TEXT NOT NULL AS (coalesce(document ->> '$.boot_ids[0]', '')) STORED,
    began_monotonic_ns INTEGER NOT NULL AS (document ->> '$.began_monotonic_ns') STORED,
    began_realtime_ns INTEGER AS (document ->> '$.began_realtime_ns') STORED,
    interface TEXT AS (document ->> '$.interface') STORED,
    orchestrator TEXT AS (document ->> '$.orchestrator') STORED,
    outcome TEXT AS (document ->> '$.outcome') STORED,
    handed_over INTEGER AS (document ->> '$.files.handed_over') STORED,
    restored INTEGER AS (document ->> '$.files.restored') STORED,
    blackout_ns INTEGER AS (document ->> '$.blackout.ns') STORED,
    uncertainty_ns INTEGER AS (document ->> '$.blackout.uncertainty_ns') STORED,
    clock TEXT AS (document ->> '$.blackout.clock') STORED,
    lost INTEGER AS (document ->> '$.events.lost') STORED,
    kernels TEXT AS (document -> '$.kernels') STORED,
    document TEXT NOT NULL CHECK (number = document ->> '$.update'),
    -- The same update is never kept twice, whatever crashes between: this is when and where it began.
    UNIQUE (boot_id, began_monotonic_ns)
);

CREATE INDEX updates_began ON updates (began_realtime_ns);
CREATE INDEX updates_outcome ON updates (outcome);
CREATE INDEX updates_blackout ON updates (blackout_ns);

CREATE VIEW phases AS
SELECT number, value ->> '$.name' AS name, value ->> '$.start_ns' AS start_ns, value ->> '$.ns' AS ns,
    value ->> '$.known' AS known
FROM updates, json_each(document, '$.phases');

CREATE VIEW sessions AS
SELECT number, value ->> '$.name' AS name, value ->> '$.outcome' AS outcome,
    value ->> '$.freeze_ns' AS freeze_ns, json_array_length(value, '$.files') AS files
FROM updates, json_each(document, '$.sessions');

-- Tokens are unsigned, and SQLite's integers are not: they are text here.
CREATE VIEW files AS
SELECT number, session.value ->> '$.name' AS session, file.value -> '$.token' AS token,
    file.value ->> '$.kind' AS kind, file.value ->> '$.bytes' AS bytes,
    file.value ->> '$.preserve_ns' AS preserve_ns, file.value ->> '$.prepare_ns' AS prepare_ns,
    file.value ->> '$.freeze_ns' AS freeze_ns, file.value ->> '$.restore_ns' AS restore_ns,
    file.value ->> '$.outcome' AS outcome
FROM updates, json_each(document, '$.sessions') AS session, json_each(session.value, '$.files') AS file;

CREATE VIEW errors AS
SELECT number, value ->> '$.operation' AS operation, value ->> '$.errno' AS errno, value ->> '$.count' AS count
FROM updates, json_each(document, '$.errors');

CREATE VIEW verdicts AS
SELECT number, value AS verdict
FROM updates, json_each(document, '$.verdicts');
