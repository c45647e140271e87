-- A whole page of documents in one statement, so that its texts are embedded in few calls; every value is read as its column's type reads it.
INSERT INTO {table} ({columns})
SELECT {columns}
FROM jsonb_populate_recordset(NULL::{table}, %s::jsonb)
{otherwise}
RETURNING {id}::text
