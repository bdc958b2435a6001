"""Images in, batches out: RecordIO files, packers, hold-outs and loaders. Import the module you need; nothing runs here."""
