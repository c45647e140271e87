SELECT set_config('statement_timeout', %(ms)s, true), set_config('lock_timeout', %(ms)s, true), set_config('search_path', 'pg_catalog, pg_temp', true)
