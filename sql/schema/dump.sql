-- dump: what pg_dump takes along of an extension's tables.

SELECT pg_catalog.pg_extension_config_dump('nv_embed.embedding', '');
SELECT pg_catalog.pg_extension_config_dump('nv_embed.generation', '');
SELECT pg_catalog.pg_extension_config_dump('nv_embed.job', '');
SELECT pg_catalog.pg_extension_config_dump('nv_embed.backfill', '');
SELECT pg_catalog.pg_extension_config_dump('nv_embed.tally', '');
SELECT pg_catalog.pg_extension_config_dump('nv_embed.reembedding', '');
SELECT pg_catalog.pg_extension_config_dump('nv_embed.canary', '');
-- The sequences too: a restored database must not give out a declaration's number again.
SELECT pg_catalog.pg_extension_config_dump('nv_embed.embedding_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('nv_embed.generation_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('nv_embed.job_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('nv_embed.reembedding_id_seq', '');
