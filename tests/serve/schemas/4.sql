-- The schema of version 4 as sqlite_master has it, and rows in every table that a server of that time wrote.
PRAGMA user_version = 4;
CREATE TABLE chats (
        seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, title TEXT NOT NULL DEFAULT '',
        model TEXT, created_at REAL NOT NULL, updated_at REAL NOT NULL, deleted_at REAL
    , pinned INTEGER NOT NULL DEFAULT 0, settings TEXT);
CREATE TABLE messages (
        seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL,
        chat_id TEXT NOT NULL REFERENCES chats (id) ON DELETE CASCADE,
        parent_id TEXT REFERENCES messages (id) ON DELETE CASCADE,
        role TEXT NOT NULL, content TEXT NOT NULL DEFAULT '', reasoning TEXT NOT NULL DEFAULT '',
        status TEXT NOT NULL, error TEXT, model TEXT, params TEXT, created_at REAL NOT NULL,
        thinking_seconds REAL, reasoning_tokens INTEGER, usage TEXT, timings TEXT, cost TEXT
    , files TEXT, tool_calls TEXT);
CREATE TABLE feedback (
        seq INTEGER PRIMARY KEY, owner TEXT NOT NULL,
        message_id TEXT NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
        value INTEGER NOT NULL, edited TEXT, note TEXT, created_at REAL NOT NULL
    );
CREATE VIRTUAL TABLE search USING fts5 (content, content='messages', content_rowid='seq', tokenize='trigram');
CREATE TABLE preferences (
        seq INTEGER PRIMARY KEY, owner TEXT NOT NULL,
        chosen_id TEXT NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
        rejected_id TEXT NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
        created_at REAL NOT NULL
    );
CREATE TABLE library (
        seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, kind TEXT NOT NULL,
        name TEXT NOT NULL, body TEXT NOT NULL, updated_at REAL NOT NULL
    );
CREATE TABLE users (
        id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, password TEXT NOT NULL, admin INTEGER NOT NULL,
        created_at REAL NOT NULL
    );
CREATE TABLE sessions (
        digest BLOB PRIMARY KEY, owner TEXT NOT NULL, opened_at REAL NOT NULL, used_at REAL NOT NULL
    );
CREATE TABLE keys (
        id TEXT PRIMARY KEY, digest BLOB NOT NULL UNIQUE,
        owner TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
        name TEXT NOT NULL, created_at REAL NOT NULL, used_at REAL,
        tokens_a_day INTEGER, parallel INTEGER -- limits; NULL: none
    );
CREATE TABLE usage (
        day TEXT NOT NULL, owner TEXT NOT NULL, key_id TEXT NOT NULL, model TEXT NOT NULL,
        answers INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
        seconds REAL NOT NULL, joules REAL NOT NULL, usd REAL NOT NULL, unpriced INTEGER NOT NULL,
        PRIMARY KEY (day, owner, key_id, model)
    );
CREATE TABLE audit (
        seq INTEGER PRIMARY KEY, at REAL NOT NULL, owner TEXT NOT NULL, name TEXT NOT NULL,
        action TEXT NOT NULL, target TEXT NOT NULL, address TEXT NOT NULL
    );
CREATE INDEX chats_by_owner ON chats (owner, updated_at);
CREATE INDEX messages_by_chat ON messages (chat_id, seq);
CREATE INDEX messages_by_parent ON messages (parent_id);
CREATE INDEX feedback_by_message ON feedback (message_id, seq);
CREATE TRIGGER search_insert AFTER INSERT ON messages
        WHEN new.status IN ('done', 'stopped', 'error', 'length')
        BEGIN INSERT INTO search (rowid, content) VALUES (new.seq, new.content); END;
CREATE TRIGGER search_final AFTER UPDATE OF status ON messages
        WHEN old.status NOT IN ('done', 'stopped', 'error', 'length')
            AND new.status IN ('done', 'stopped', 'error', 'length')
        BEGIN INSERT INTO search (rowid, content) VALUES (new.seq, new.content); END;
CREATE TRIGGER search_delete AFTER DELETE ON messages
        WHEN old.status IN ('done', 'stopped', 'error', 'length')
        BEGIN INSERT INTO search (search, rowid, content) VALUES ('delete', old.seq, old.content); END;
CREATE INDEX preferences_by_chosen ON preferences (chosen_id);
CREATE INDEX preferences_by_rejected ON preferences (rejected_id);
CREATE INDEX library_by_owner ON library (owner, kind, name);
CREATE TRIGGER search_reopened AFTER UPDATE OF status ON messages
        WHEN old.status IN ('done', 'stopped', 'error', 'length')
            AND new.status NOT IN ('done', 'stopped', 'error', 'length')
        BEGIN INSERT INTO search (search, rowid, content) VALUES ('delete', old.seq, old.content); END;
CREATE INDEX keys_by_owner ON keys (owner);
CREATE INDEX usage_by_key ON usage (key_id, day);
INSERT INTO chats (id, owner, title, model, created_at, updated_at) VALUES ('c1', 'local', 'Boats', 'nano', 1.0, 2.0);
INSERT INTO messages (id, owner, chat_id, parent_id, role, content, status, created_at)
    VALUES ('m1', 'local', 'c1', NULL, 'user', 'How many boats? 何艘ですか', 'done', 1.0);
INSERT INTO messages (id, owner, chat_id, parent_id, role, content, reasoning, status, model, created_at, usage)
    VALUES ('m2', 'local', 'c1', 'm1', 'assistant', 'Three boats.', 'I count.', 'done', 'nano', 2.0, '{"prompt_tokens": 3}');
INSERT INTO feedback (owner, message_id, value, edited, note, created_at) VALUES ('local', 'm2', -1, 'Four boats.', NULL, 3.0);
UPDATE chats SET pinned = 1, settings = '{"system": "be brief"}';
INSERT INTO library (id, owner, kind, name, body, updated_at) VALUES ('l1', 'local', 'prompt', 'p', '{"text": "t"}', 1.0);
INSERT INTO users (id, name, password, admin, created_at) VALUES ('u1', 'ann', 'scrypt$4$8$1$AAAA$AAAA', 1, 1.0);
INSERT INTO keys (id, digest, owner, name, created_at) VALUES ('k1', x'00', 'u1', 'script', 1.0);
INSERT INTO usage VALUES ('2026-11-26', 'u1', 'k1', 'nano', 1, 2, 3, 0.5, 0.5, 0.1, 0);
INSERT INTO messages (id, owner, chat_id, parent_id, role, content, status, created_at, files)
    VALUES ('m3', 'local', 'c1', 'm2', 'user', 'Look it up.', 'done', 3.0, '[{"name": "sea.txt", "text": "the sea"}]');
INSERT INTO messages (id, owner, chat_id, parent_id, role, content, status, model, created_at, tool_calls)
    VALUES ('m4', 'local', 'c1', 'm3', 'assistant', '', 'done', 'nano', 4.0,
    '[{"id": "call_1", "name": "look", "arguments": "{}", "result": "four"}]');
INSERT INTO preferences (owner, chosen_id, rejected_id, created_at) VALUES ('local', 'm2', 'm4', 5.0);
INSERT INTO sessions (digest, owner, opened_at, used_at) VALUES (x'01', 'u1', 1.0, 2.0);
UPDATE keys SET used_at = 2.0, tokens_a_day = 1000, parallel = 2;
INSERT INTO audit (at, owner, name, action, target, address) VALUES (1.0, 'u1', 'ann', 'key_made', 'script', '127.0.0.1');
