-- A collection's documents, as somebody would keep them. `language` is the text search configuration of each.

CREATE TABLE {table} (
    id text PRIMARY KEY,
    title text NOT NULL,
    body text NOT NULL,
    language regconfig NOT NULL
)
