CREATE TABLE IF NOT EXISTS users (
    username TEXT NOT NULL,
    domain TEXT NOT NULL,
    ha1 TEXT NOT NULL,
    ha1_sha256 TEXT NOT NULL,
    PRIMARY KEY (username, domain)
);
CREATE TABLE IF NOT EXISTS location (
    id VARCHAR(64) NOT NULL PRIMARY KEY,
    username TEXT NOT NULL,
    domain TEXT NOT NULL,
    contact TEXT NOT NULL,
    received TEXT,
    local_address TEXT NOT NULL,
    path TEXT,
    q INTEGER NOT NULL,
    expires_at BIGINT NOT NULL,
    call_id TEXT NOT NULL,
    cseq BIGINT NOT NULL,
    user_agent TEXT NOT NULL,
    instance TEXT,
    reg_id BIGINT,
    methods INTEGER NOT NULL DEFAULT 0,
    updated_at BIGINT NOT NULL
);
CREATE INDEX IF NOT EXISTS location_user ON location (username, domain);
CREATE INDEX IF NOT EXISTS location_expires_at ON location (expires_at);
CREATE TABLE IF NOT EXISTS cdr (
    id_ha BIGSERIAL PRIMARY KEY,
    calldate TIMESTAMP(6) NOT NULL,
    clid VARCHAR(80) NOT NULL DEFAULT '',
    src VARCHAR(80) NOT NULL DEFAULT '',
    dst VARCHAR(80) NOT NULL DEFAULT '',
    dcontext VARCHAR(80) NOT NULL DEFAULT '',
    channel VARCHAR(80) NOT NULL DEFAULT '',
    dstchannel VARCHAR(80) NOT NULL DEFAULT '',
    lastapp VARCHAR(80) NOT NULL DEFAULT '',
    lastdata VARCHAR(80) NOT NULL DEFAULT '',
    duration INTEGER NOT NULL DEFAULT 0,
    billsec INTEGER NOT NULL DEFAULT 0,
    disposition VARCHAR(45) NOT NULL DEFAULT '',
    amaflags INTEGER NOT NULL DEFAULT 0,
    accountcode VARCHAR(20) NOT NULL DEFAULT '',
    uniqueid VARCHAR(32) NOT NULL UNIQUE,
    userfield VARCHAR(255) NOT NULL DEFAULT '',
    answerdate TIMESTAMP(6),
    enddate TIMESTAMP(6) NOT NULL,
    call_id VARCHAR(255) NOT NULL DEFAULT '',
    sip_code INTEGER NOT NULL DEFAULT 0,
    ending VARCHAR(45) NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS cdr_calldate ON cdr (calldate);
CREATE INDEX IF NOT EXISTS cdr_src ON cdr (src);
CREATE INDEX IF NOT EXISTS cdr_dst ON cdr (dst);
