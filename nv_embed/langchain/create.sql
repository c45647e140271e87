CREATE TABLE {table} (
    id text PRIMARY KEY DEFAULT gen_random_uuid()::text,
    content text NOT NULL,
    metadata jsonb NOT NULL DEFAULT '{{}}'
)
