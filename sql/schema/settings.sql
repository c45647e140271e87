-- settings: where the sidecar is, and what it is shown.
--
-- A table that only its owner can read, and not a GUC: any user can set a GUC, and would send everybody's texts elsewhere. It is not part of a dump:
-- a copy of the database restored elsewhere must not talk to this one's sidecar.

CREATE TABLE nv_embed.settings (
    only_row          boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    endpoint          text,
    timeout_s         real NOT NULL DEFAULT 60 CHECK (timeout_s > 0::double precision AND timeout_s <= 3600::double precision),
    token             text,
    ca                text,
    certificate       text,
    key               text,
    token_without_tls boolean NOT NULL DEFAULT false
);

COMMENT ON TABLE nv_embed.settings IS 'Where the sidecar is; changed by nv_embed.configure(), read by its owner only.';
COMMENT ON COLUMN nv_embed.settings.endpoint IS 'host:port or unix:/path; NULL until configured.';
COMMENT ON COLUMN nv_embed.settings.timeout_s IS 'Seconds to wait for the answer to one page of texts.';
COMMENT ON COLUMN nv_embed.settings.token IS 'What the sidecar lets in; NULL where it asks for none.';
COMMENT ON COLUMN nv_embed.settings.ca IS 'PEM certificates of who has signed the sidecar''s, or system for the usual authorities; NULL: no TLS.';
COMMENT ON COLUMN nv_embed.settings.certificate IS 'PEM certificate that is shown to the sidecar, with its chain.';
COMMENT ON COLUMN nv_embed.settings.key IS 'Its PEM key.';
COMMENT ON COLUMN nv_embed.settings.token_without_tls IS 'Whether the token may go over the network unencrypted.';

-- Without a policy only the owner passes: members of pg_read_all_data and pg_write_all_data do not.
ALTER TABLE nv_embed.settings ENABLE ROW LEVEL SECURITY;

INSERT INTO nv_embed.settings DEFAULT VALUES;
