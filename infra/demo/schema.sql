-- E-mail marketing: whom we write to, what, to which of them, and what they did with it.
-- No foreign keys: the writer keeps the rows consistent itself, so that each row change is one it asked for.

CREATE TABLE contacts (
    id bigint PRIMARY KEY,
    email text NOT NULL,
    first_name text NOT NULL,
    last_name text NOT NULL,
    city text NOT NULL,
    language text NOT NULL,
    status text NOT NULL CHECK (status IN ('subscribed', 'unsubscribed', 'bounced')),
    attributes jsonb NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);
-- The view `contact` names columns: whether one of them changed is seen only with the old row at hand.
ALTER TABLE contacts REPLICA IDENTITY FULL;

-- Bodies are large enough to be stored apart (TOAST): an edit of the subject does not send them.
CREATE TABLE templates (
    id bigint PRIMARY KEY,
    name text NOT NULL,
    subject text NOT NULL,
    body text NOT NULL
);
ALTER TABLE templates ALTER COLUMN body SET STORAGE EXTERNAL;

CREATE TABLE segments (
    id bigint PRIMARY KEY,
    name text NOT NULL,
    rule text NOT NULL
);

CREATE TABLE segment_members (
    segment_id bigint NOT NULL,
    contact_id bigint NOT NULL,
    PRIMARY KEY (segment_id, contact_id)
);
CREATE INDEX ON segment_members (contact_id);

CREATE TABLE campaigns (
    id bigint PRIMARY KEY,
    name text NOT NULL,
    template_id bigint NOT NULL,
    segment_id bigint NOT NULL,
    status text NOT NULL CHECK (status IN ('draft', 'scheduled', 'sending', 'sent')),
    scheduled_at timestamptz
);

CREATE TABLE tracking_events (
    id bigint PRIMARY KEY,
    contact_id bigint NOT NULL,
    campaign_id bigint NOT NULL,
    kind text NOT NULL CHECK (kind IN ('sent', 'open', 'click')),
    at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON tracking_events (contact_id);
-- The view `contact_stats` is keyed by a column outside of the primary key: its old value must be sent.
ALTER TABLE tracking_events REPLICA IDENTITY FULL;

CREATE PUBLICATION staleproof FOR TABLE contacts, templates, segments, segment_members, campaigns, tracking_events;
