"""
What a database has of a project's tables: columns, indexes, triggers, declarations. Numbers that a declaration gets anew each time are left out.
"""

import re

import psycopg

QUERY = """
    SELECT 'column ' || c.oid::regclass || '.' || a.attname, format_type(a.atttypid, a.atttypmod) || ' ' || a.attnotnull
    FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
    WHERE c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
        AND c.relnamespace = ANY (SELECT n.oid FROM pg_namespace AS n WHERE {mine})
    UNION ALL
    SELECT 'index ' || i.indexrelid::regclass, pg_get_indexdef(i.indexrelid) || ' ' || i.indisvalid
    FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
    WHERE c.relnamespace = ANY (SELECT n.oid FROM pg_namespace AS n WHERE {mine})
    UNION ALL
    SELECT 'trigger ' || t.tgrelid::regclass || '.' || t.tgname, pg_get_triggerdef(t.oid)
    FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
    WHERE NOT t.tgisinternal AND c.relnamespace = ANY (SELECT n.oid FROM pg_namespace AS n WHERE {mine})
    UNION ALL
    SELECT 'embedding ' || e.relation::regclass || '.' || e.target, concat_ws(' ', e.source, e.mode, e.truncate, e.chunk_tokens, e.chunk_overlap)
    FROM nv_embed.embedding AS e
    UNION ALL
    SELECT 'generation ' || e.relation::regclass || '.' || g.target, concat_ws(' ', g.model, g.dim, g.storage, g.state, g.chunks::regclass)
    FROM nv_embed.generation AS g JOIN nv_embed.embedding AS e ON e.id = g.embedding
"""
MINE = "n.nspname NOT LIKE 'pg\\_%' AND n.nspname NOT IN ('information_schema', 'nv_embed')"


def described(connection: "psycopg.Connection[tuple[str, str]]") -> dict[str, str]:
    """Descriptions by kind and name."""
    rows = connection.execute(QUERY.format(mine=MINE).encode()).fetchall()
    return {_numberless(name): _numberless(text) for name, text in rows if "_version" not in name}


def differences(first: dict[str, str], second: dict[str, str]) -> list[str]:
    return [f"{name}: {first.get(name)} / {second.get(name)}" for name in sorted(first.keys() | second.keys()) if first.get(name) != second.get(name)]


def _numberless(text: str) -> str:
    text = re.sub(r"nv_embed_\d+_", "nv_embed_N_", text)
    text = re.sub(r"embedding_g\d+", "embedding_gN", text)
    return re.sub(r"\('\d+'", "('N'", re.sub(r", '\d+'\)", ", 'N')", text))
