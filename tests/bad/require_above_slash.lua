return require "../page"
