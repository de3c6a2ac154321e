-- The allocator on PostgreSQL: corpora with their prefixes, a sequence for each corpus and quarter, one row for each claim,
-- and the audit of every operation.
--
-- What is spared PostgreSQL: the idempotency key stands in the claim's own row, which is the saved answer too, so that no second
-- table is written; the claim's number is a sequence's, whose gaps after a crash are accepted, since a counter in a row would make all
-- claims of a corpus wait for each other's commit; and the audit is indexed by block ranges, for its event-ids grow with time.

CREATE TABLE corpus_shard_registry (
    corpus_stable_name text PRIMARY KEY,
    shard_prefix integer NOT NULL UNIQUE CHECK (shard_prefix BETWEEN 1 AND 65535),
    onboarded_at timestamptz NOT NULL DEFAULT now(),
    decommissioned_at timestamptz,
    notes text
);

-- Claims of one corpus are numbered from 1 in each quarter.
CREATE TABLE corpus_quarters (
    corpus_stable_name text NOT NULL REFERENCES corpus_shard_registry,
    begins_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL,
    quarter text NOT NULL,
    retention_expires_at timestamptz NOT NULL,
    claim_sequence regclass NOT NULL,
    PRIMARY KEY (corpus_stable_name, begins_at)
);

CREATE TABLE manifest_ledger_events (
    -- A UUIDv7: milliseconds, the corpus's prefix, the claim's number.
    event_id uuid NOT NULL,
    claiming_corpus text NOT NULL,
    claim_timestamp timestamptz NOT NULL,
    claim_sequence bigint NOT NULL,
    event_key text NOT NULL,
    occurred_at timestamptz NOT NULL,
    owning_corpus text NOT NULL,
    hosting_corpus text NOT NULL,
    category text NOT NULL,
    taxonomy_version integer NOT NULL,
    metadata bytea NOT NULL,
    reconciliation_state text NOT NULL DEFAULT 'pending',
    effective_quarter text NOT NULL,
    retention_expires_at timestamptz NOT NULL,
    tombstoned_at timestamptz,
    tombstone_reason text,
    reactivated_at timestamptz,
    -- A retry has the key of the first request and the hash of what it asked for; an item is its number in a batch.
    idempotency_key uuid NOT NULL,
    item integer NOT NULL,
    request_hash bytea NOT NULL,
    PRIMARY KEY (event_id) WITH (fillfactor = 80),
    UNIQUE (claiming_corpus, idempotency_key, item)
);

CREATE TABLE audit (
    event_id uuid NOT NULL,
    operation text NOT NULL,
    corpus text NOT NULL,
    recorded_at timestamptz NOT NULL,
    principal text NOT NULL,
    rationale text
);

CREATE INDEX audit_event_id ON audit USING brin (event_id);

-- The id of a claim: bits of the time in milliseconds, 7, the prefix's upper twelve, binary 10, the prefix's lower four, the number.
CREATE FUNCTION event_id(at timestamptz, prefix integer, number bigint) RETURNS uuid LANGUAGE sql STABLE
RETURN (
    lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0')
    || '7' || lpad(to_hex(prefix >> 4), 3, '0')
    || to_hex((-9223372036854775808)::bigint | ((prefix & 15)::bigint << 58) | number)
)::uuid;

-- Gives a corpus the next prefix, and sequences for this quarter and the next one.
CREATE FUNCTION onboard(corpus text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    prefix integer := (SELECT coalesce(max(shard_prefix), 0) + 1 FROM corpus_shard_registry);
    begins timestamptz;
    name text;
BEGIN
    INSERT INTO corpus_shard_registry (corpus_stable_name, shard_prefix) VALUES (corpus, prefix);
    FOR number IN 0..1 LOOP
        begins := date_trunc('quarter', now(), 'UTC') + number * interval '3 months';
        name := format('claim_sequence_%s_%s', prefix, to_char(begins AT TIME ZONE 'UTC', 'YYYY_Q'));
        EXECUTE format('CREATE SEQUENCE %I', name);
        INSERT INTO corpus_quarters VALUES (
            corpus, begins, begins + interval '3 months', to_char(begins AT TIME ZONE 'UTC', 'YYYY-"Q"Q'),
            begins + interval '3 months 4 years', name::regclass
        );
    END LOOP;
END
$$;
